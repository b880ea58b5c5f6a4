// Compares src/ffi/xla_abi.h with the header that jaxlib brings: sizes, offsets and numbers. Not a
// part of the build; tests/python/test_jax_abi.py compiles and runs it where jaxlib is installed.

#include <cstddef>
#include <cstdio>

#include "ffi/xla_abi.h"
#include "xla/ffi/api/c_api.h"

namespace xla = penstock::ffi::xla;

namespace {

int failures = 0;
int comparisons = 0;

void compare(const char* what, std::size_t ours, std::size_t theirs) {
  ++comparisons;
  if (ours == theirs) return;
  ++failures;
  std::printf("%s: expected %zu (actual: %zu)\n", what, theirs, ours);
}

}  // namespace

#define SIZE(ours, theirs) compare(#ours, sizeof(xla::ours), sizeof(theirs))
#define FIELD(ours, member, theirs, field)                                          \
  compare(#ours "." #member, offsetof(xla::ours, member), offsetof(theirs, field)); \
  compare("size of " #ours "." #member, sizeof(xla::ours::member), sizeof(theirs::field))
#define HEAD(ours, theirs)                       \
  FIELD(ours, struct_size, theirs, struct_size); \
  FIELD(ours, extension, theirs, extension_start)
#define NUMBER(ours, theirs) compare(#ours, xla::ours, theirs)
// The size that a maker of the structure writes into it.
#define MADE(ours, theirs) \
  compare("struct_size of " #ours, xla::k##ours##Size, theirs##_STRUCT_SIZE)

int main() {
  NUMBER(kMajorVersion, XLA_FFI_API_MAJOR);
  std::printf("version %d.%d\n", XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);

  SIZE(Extension, XLA_FFI_Extension_Base);
  FIELD(Extension, struct_size, XLA_FFI_Extension_Base, struct_size);
  FIELD(Extension, type, XLA_FFI_Extension_Base, type);
  FIELD(Extension, next, XLA_FFI_Extension_Base, next);
  NUMBER(kMetadataExtension, XLA_FFI_Extension_Metadata);

  SIZE(ApiVersion, XLA_FFI_Api_Version);
  HEAD(ApiVersion, XLA_FFI_Api_Version);
  FIELD(ApiVersion, major, XLA_FFI_Api_Version, major_version);
  FIELD(ApiVersion, minor, XLA_FFI_Api_Version, minor_version);
  MADE(ApiVersion, XLA_FFI_Api_Version);

  NUMBER(kOk, XLA_FFI_Error_Code_OK);
  NUMBER(kInvalidArgument, XLA_FFI_Error_Code_INVALID_ARGUMENT);
  NUMBER(kResourceExhausted, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  NUMBER(kFailedPrecondition, XLA_FFI_Error_Code_FAILED_PRECONDITION);
  NUMBER(kInternal, XLA_FFI_Error_Code_INTERNAL);
  SIZE(ErrorCreateArgs, XLA_FFI_Error_Create_Args);
  HEAD(ErrorCreateArgs, XLA_FFI_Error_Create_Args);
  FIELD(ErrorCreateArgs, message, XLA_FFI_Error_Create_Args, message);
  FIELD(ErrorCreateArgs, code, XLA_FFI_Error_Create_Args, errc);
  MADE(ErrorCreateArgs, XLA_FFI_Error_Create_Args);
  SIZE(ErrorGetMessageArgs, XLA_FFI_Error_GetMessage_Args);
  FIELD(ErrorGetMessageArgs, error, XLA_FFI_Error_GetMessage_Args, error);
  FIELD(ErrorGetMessageArgs, message, XLA_FFI_Error_GetMessage_Args, message);
  SIZE(ErrorDestroyArgs, XLA_FFI_Error_Destroy_Args);
  FIELD(ErrorDestroyArgs, error, XLA_FFI_Error_Destroy_Args, error);

  NUMBER(kPred, XLA_FFI_DataType_PRED);
  NUMBER(kS32, XLA_FFI_DataType_S32);
  NUMBER(kS64, XLA_FFI_DataType_S64);
  NUMBER(kU8, XLA_FFI_DataType_U8);
  NUMBER(kF16, XLA_FFI_DataType_F16);
  NUMBER(kF32, XLA_FFI_DataType_F32);
  NUMBER(kF64, XLA_FFI_DataType_F64);
  NUMBER(kBF16, XLA_FFI_DataType_BF16);
  NUMBER(kBufferArgument, XLA_FFI_ArgType_BUFFER);
  NUMBER(kBufferResult, XLA_FFI_RetType_BUFFER);
  NUMBER(kArrayAttribute, XLA_FFI_AttrType_ARRAY);
  NUMBER(kDictionaryAttribute, XLA_FFI_AttrType_DICTIONARY);
  NUMBER(kScalarAttribute, XLA_FFI_AttrType_SCALAR);
  NUMBER(kStringAttribute, XLA_FFI_AttrType_STRING);

  SIZE(Buffer, XLA_FFI_Buffer);
  HEAD(Buffer, XLA_FFI_Buffer);
  FIELD(Buffer, dtype, XLA_FFI_Buffer, dtype);
  FIELD(Buffer, data, XLA_FFI_Buffer, data);
  FIELD(Buffer, rank, XLA_FFI_Buffer, rank);
  FIELD(Buffer, dims, XLA_FFI_Buffer, dims);
  SIZE(Span, XLA_FFI_ByteSpan);
  FIELD(Span, data, XLA_FFI_ByteSpan, ptr);
  FIELD(Span, size, XLA_FFI_ByteSpan, len);
  SIZE(Scalar, XLA_FFI_Scalar);
  FIELD(Scalar, dtype, XLA_FFI_Scalar, dtype);
  FIELD(Scalar, value, XLA_FFI_Scalar, value);
  SIZE(Array, XLA_FFI_Array);
  FIELD(Array, dtype, XLA_FFI_Array, dtype);
  FIELD(Array, size, XLA_FFI_Array, size);
  FIELD(Array, data, XLA_FFI_Array, data);

  NUMBER(kInstantiate, XLA_FFI_ExecutionStage_INSTANTIATE);
  NUMBER(kPrepare, XLA_FFI_ExecutionStage_PREPARE);
  NUMBER(kInitialize, XLA_FFI_ExecutionStage_INITIALIZE);
  NUMBER(kExecute, XLA_FFI_ExecutionStage_EXECUTE);
  SIZE(Arguments, XLA_FFI_Args);
  HEAD(Arguments, XLA_FFI_Args);
  FIELD(Arguments, size, XLA_FFI_Args, size);
  FIELD(Arguments, types, XLA_FFI_Args, types);
  FIELD(Arguments, values, XLA_FFI_Args, args);
  SIZE(Results, XLA_FFI_Rets);
  HEAD(Results, XLA_FFI_Rets);
  FIELD(Results, size, XLA_FFI_Rets, size);
  FIELD(Results, types, XLA_FFI_Rets, types);
  FIELD(Results, values, XLA_FFI_Rets, rets);
  SIZE(Attributes, XLA_FFI_Attrs);
  HEAD(Attributes, XLA_FFI_Attrs);
  FIELD(Attributes, size, XLA_FFI_Attrs, size);
  FIELD(Attributes, types, XLA_FFI_Attrs, types);
  FIELD(Attributes, names, XLA_FFI_Attrs, names);
  FIELD(Attributes, values, XLA_FFI_Attrs, attrs);
  HEAD(CallFrame, XLA_FFI_CallFrame);
  FIELD(CallFrame, api, XLA_FFI_CallFrame, api);
  FIELD(CallFrame, context, XLA_FFI_CallFrame, ctx);
  FIELD(CallFrame, stage, XLA_FFI_CallFrame, stage);
  FIELD(CallFrame, arguments, XLA_FFI_CallFrame, args);
  FIELD(CallFrame, results, XLA_FFI_CallFrame, rets);
  FIELD(CallFrame, attributes, XLA_FFI_CallFrame, attrs);
#if XLA_FFI_API_MINOR >= 1
  SIZE(CallFrame, XLA_FFI_CallFrame);
  FIELD(CallFrame, future, XLA_FFI_CallFrame, future);
#endif

  FIELD(Metadata, struct_size, XLA_FFI_Metadata, struct_size);
  FIELD(Metadata, api_version, XLA_FFI_Metadata, api_version);
  FIELD(Metadata, traits, XLA_FFI_Metadata, traits);
#if XLA_FFI_API_MINOR >= 3
  SIZE(Metadata, XLA_FFI_Metadata);
  FIELD(Metadata, state_type_id, XLA_FFI_Metadata, state_type_id);
#endif
  SIZE(MetadataExtension, XLA_FFI_Metadata_Extension);
  FIELD(MetadataExtension, base, XLA_FFI_Metadata_Extension, extension_base);
  FIELD(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);

  SIZE(StreamGetArgs, XLA_FFI_Stream_Get_Args);
  HEAD(StreamGetArgs, XLA_FFI_Stream_Get_Args);
  FIELD(StreamGetArgs, context, XLA_FFI_Stream_Get_Args, ctx);
  FIELD(StreamGetArgs, stream, XLA_FFI_Stream_Get_Args, stream);
  MADE(StreamGetArgs, XLA_FFI_Stream_Get_Args);
  HEAD(Api, XLA_FFI_Api);
  FIELD(Api, version, XLA_FFI_Api, api_version);
  FIELD(Api, internal, XLA_FFI_Api, internal_api);
  FIELD(Api, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);
  FIELD(Api, get_error_message, XLA_FFI_Api, XLA_FFI_Error_GetMessage);
  FIELD(Api, destroy_error, XLA_FFI_Api, XLA_FFI_Error_Destroy);
  FIELD(Api, get_stream, XLA_FFI_Api, XLA_FFI_Stream_Get);
#if XLA_FFI_API_MINOR >= 2
  SIZE(DeviceOrdinalGetArgs, XLA_FFI_DeviceOrdinal_Get_Args);
  HEAD(DeviceOrdinalGetArgs, XLA_FFI_DeviceOrdinal_Get_Args);
  FIELD(DeviceOrdinalGetArgs, context, XLA_FFI_DeviceOrdinal_Get_Args, ctx);
  FIELD(DeviceOrdinalGetArgs, ordinal, XLA_FFI_DeviceOrdinal_Get_Args, device_ordinal);
  MADE(DeviceOrdinalGetArgs, XLA_FFI_DeviceOrdinal_Get_Args);
  FIELD(Api, get_device_ordinal, XLA_FFI_Api, XLA_FFI_DeviceOrdinal_Get);
#endif

  std::printf("%d of %d comparisons failed\n", failures, comparisons);
  return failures == 0 ? 0 : 1;
}
