// A consumer's program: a strategy out of a file, written by the library and read back.
#include <cstdio>
#include <fstream>
#include <shardwise/config.hpp>

int main() {
  const shardwise::Strategy strategy = shardwise::Strategy::zero2();
  std::ofstream("strategy.yaml") << shardwise::write_config(strategy);
  const shardwise::LoadedConfiguration loaded = shardwise::load_config("strategy.yaml");
  std::printf("%s, %s\n", loaded.strategy().name().c_str(),
              loaded.strategy() == strategy ? "as it was" : "another");
}
