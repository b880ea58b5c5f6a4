// Symbol visibility: everything is hidden except what carries PENSTOCK_EXPORT.
#pragma once

#if defined(_WIN32)
#if defined(PENSTOCK_BUILDING)
#define PENSTOCK_EXPORT __declspec(dllexport)
#else
#define PENSTOCK_EXPORT __declspec(dllimport)
#endif
#else
#define PENSTOCK_EXPORT __attribute__((visibility("default")))
#endif
