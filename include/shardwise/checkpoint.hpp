#pragma once

// The component `checkpoint`: crash-safe saves of a training, which load at any number of ranks.

#include "checkpoint/checkpoint_folder.hpp"
#include "checkpoint/file_system.hpp"
#include "checkpoint/load.hpp"
#include "checkpoint/posix_file_system.hpp"
#include "checkpoint/save_handle.hpp"
#include "checkpoint/training_state.hpp"
#include "checkpoint/value.hpp"
