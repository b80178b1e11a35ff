#pragma once

/// @file
/// The embedded backend: ranks are threads of one process.
#include "run_ranks.hpp"
#include "thread_communicator.hpp"
