// XLA's foreign function interface in C (major version 0), as far as it is used here: what XLA
// hands to a custom call, and what it may be asked in return. Declared in words of our own, so that
// the build needs no XLA; a test compares sizes, offsets and numbers with the header that jaxlib
// brings.
//
// Structures only grow, at their end. `struct_size` is what their maker knows of them: the offset
// of the last member and its size, without the padding behind.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock::ffi::xla {

constexpr std::int32_t kMajorVersion = 0;
/// The oldest and the newest minor version that these declarations have been compared with.
constexpr std::int32_t kOldestMinorVersion = 1;
constexpr std::int32_t kMinorVersion = 3;

struct Error;             // XLA's own
struct ExecutionContext;  // XLA's own
struct Future;            // XLA's own
struct InternalApi;       // XLA's own

// ---- extensions
// ----------------------------------------------------------------------------------

enum ExtensionType : std::uint32_t { kMetadataExtension = 1 };

/// Head of every extension; a list.
struct Extension {
  std::size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct ApiVersion {
  std::size_t struct_size;
  Extension* extension;
  std::int32_t major;
  std::int32_t minor;
};

// ---- errors
// --------------------------------------------------------------------------------------

enum ErrorCode : std::uint32_t {
  kOk = 0,
  kInvalidArgument = 3,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kInternal = 13,
};

struct ErrorCreateArgs {
  std::size_t struct_size;
  Extension* extension;
  const char* message;  // copied
  ErrorCode code;
};

struct ErrorGetMessageArgs {
  std::size_t struct_size;
  Extension* extension;
  Error* error;
  const char* message;  // out; lives as long as the error
};

struct ErrorDestroyArgs {
  std::size_t struct_size;
  Extension* extension;
  Error* error;
};

// ---- arrays and attributes
// -----------------------------------------------------------------------

enum DataType : std::uint32_t {
  kPred = 1,
  kS32 = 4,
  kS64 = 5,
  kU8 = 6,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kBF16 = 16,
};

enum ArgumentType : std::uint32_t { kBufferArgument = 1 };
enum ResultType : std::uint32_t { kBufferResult = 1 };
enum AttributeType : std::uint32_t {
  kArrayAttribute = 1,
  kDictionaryAttribute = 2,
  kScalarAttribute = 3,
  kStringAttribute = 4,
};

/// An array in row-major order.
struct Buffer {
  std::size_t struct_size;
  Extension* extension;
  DataType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

/// Characters without a zero behind them; also the value of a string attribute.
struct Span {
  const char* data;
  std::size_t size;
};

struct Scalar {
  DataType dtype;
  void* value;
};

struct Array {
  DataType dtype;
  std::size_t size;
  void* data;
};

// ---- one call
// ------------------------------------------------------------------------------------

enum Stage : std::uint32_t { kInstantiate = 0, kPrepare = 1, kInitialize = 2, kExecute = 3 };

struct Arguments {
  std::size_t struct_size;
  Extension* extension;
  std::int64_t size;
  ArgumentType* types;
  void** values;  // Buffer*
};

struct Results {
  std::size_t struct_size;
  Extension* extension;
  std::int64_t size;
  ResultType* types;
  void** values;  // Buffer*
};

struct Attributes {
  std::size_t struct_size;
  Extension* extension;
  std::int64_t size;
  AttributeType* types;
  Span** names;   // sorted
  void** values;  // Array*, Scalar* or Span*
};

struct Api;

struct CallFrame {
  std::size_t struct_size;
  Extension* extension;
  const Api* api;
  ExecutionContext* context;
  Stage stage;
  Arguments arguments;
  Results results;
  Attributes attributes;
  Future* future;  // out; left null by calls that are done when they return
};

/// Returns null, or an error that XLA then owns.
using Handler = Error* (*)(CallFrame*);

// ---- what a handler tells of itself
// --------------------------------------------------------------

struct Metadata {
  std::size_t struct_size;  // without state_type_id
  ApiVersion api_version;
  std::uint32_t traits;
  std::int64_t state_type_id;  // 0: no state; since version 0.2
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

// ---- what XLA may be asked
// -----------------------------------------------------------------------

struct StreamGetArgs {
  std::size_t struct_size;
  Extension* extension;
  ExecutionContext* context;
  void* stream;  // out: a CUstream, where the platform is CUDA
};

struct DeviceOrdinalGetArgs {
  std::size_t struct_size;
  Extension* extension;
  ExecutionContext* context;
  std::int32_t ordinal;  // out
};

struct Api {
  std::size_t struct_size;
  Extension* extension;
  ApiVersion version;
  const InternalApi* internal;
  Error* (*create_error)(ErrorCreateArgs*);
  void (*get_error_message)(ErrorGetMessageArgs*);
  void (*destroy_error)(ErrorDestroyArgs*);
  void* register_handler;
  Error* (*get_stream)(StreamGetArgs*);
  void* register_type;
  void* get_from_context;
  void* set_state;
  void* get_state;
  void* allocate_memory;
  void* free_memory;
  void* schedule_task;
  void* thread_count;
  void* create_future;
  void* set_future_available;
  void* set_future_error;
  void* get_run_id;
  Error* (*get_device_ordinal)(DeviceOrdinalGetArgs*);
};

// What to put into struct_size of the structures that are made here.
constexpr std::size_t kApiVersionSize = offsetof(ApiVersion, minor) + sizeof(ApiVersion::minor);
constexpr std::size_t kErrorCreateArgsSize =
    offsetof(ErrorCreateArgs, code) + sizeof(ErrorCreateArgs::code);
constexpr std::size_t kStreamGetArgsSize =
    offsetof(StreamGetArgs, stream) + sizeof(StreamGetArgs::stream);
constexpr std::size_t kDeviceOrdinalGetArgsSize =
    offsetof(DeviceOrdinalGetArgs, ordinal) + sizeof(DeviceOrdinalGetArgs::ordinal);
/// Of an Api that has get_device_ordinal.
constexpr std::size_t kApiSize =
    offsetof(Api, get_device_ordinal) + sizeof(Api::get_device_ordinal);

}  // namespace penstock::ffi::xla
