// Every rank runs every test, in the same order: collectives in them are the ranks' own.
#include <catch2/catch_session.hpp>
#include <cstdio>
#include <exception>

#include "world.hpp"

namespace {
shardwise::MpiSession* own_session = nullptr;
}

shardwise::MpiSession& shardwise::test::session() { return *own_session; }

int main(int count, char** arguments) try {
  shardwise::MpiSession session;
  own_session = &session;
  return Catch::Session().run(count, arguments);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
