#pragma once

/// @file
/// Models in the files of Hugging Face's tools: import and export, straight into and out of shards.
#include "hugging_face_export.hpp"
#include "hugging_face_import.hpp"
