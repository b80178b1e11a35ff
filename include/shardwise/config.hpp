#pragma once

/// @file
/// Component `config`: a Strategy, and what a trainer's loop needs beside it, from a file. Needs
/// yaml-cpp; config/write.hpp, which writes such a file, does not.

#include "config/agree.hpp"
#include "config/configuration.hpp"
#include "config/field.hpp"
#include "config/key.hpp"
#include "config/load.hpp"
#include "config/loaded_configuration.hpp"
#include "config/problem.hpp"
#include "config/write.hpp"
