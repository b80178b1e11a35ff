#pragma once

/// @file
/// fmt for messages. Its checks of format strings at compile time need constexpr functions, which
/// it switches off under nvcc; nvcc's front end has had them since CUDA 12.
#if defined(__CUDACC__) && !defined(FMT_USE_CONSTEXPR)
#define FMT_USE_CONSTEXPR 1
#endif
#include <fmt/core.h>
