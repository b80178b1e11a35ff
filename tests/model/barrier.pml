/*
 * The protocol of comm/thread_group.hpp for N ranks: one word {poisoned, generation, arrived} decides
 * each collective, buffers are read between commit and the exit barrier, poison acts on what is not
 * committed. Ranks may fail or leave between collectives, give up while they wait (TIMEOUTS), and be
 * poisoned from outside at any moment.
 *
 * Checked in every interleaving: nobody reads a buffer that its owner has taken back, or that belongs
 * to another collective; a collective runs on all ranks or on none; every rank ends. Memory is
 * sequentially consistent here, as the accesses that matter are there.
 *
 * BROKEN names one mistake; each must be found.
 */
#ifndef N
#define N 3
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef TIMEOUTS
#define TIMEOUTS 1
#endif
#define exit_obeys_poison 1
#define poison_undoes_commit 2
#define no_exit_barrier 3
#define gives_up_blindly 4
#define arrives_in_spite_of_poison 5
#define waits_for_commit_alone 6
#ifndef BROKEN
#define BROKEN 0
#endif

/* The word; a compare-and-exchange is one atomic step. */
bool poisoned = false;
byte generation = 0;
byte arrived = 0;

byte exits = 0;
byte shown[N] = 0;    /* generation + 1 of the call whose buffers are shown; 0: none are */
byte readers[N] = 0;  /* of a rank's buffers, now */
byte ran[ROUNDS] = 0; /* ranks that ran this collective */
byte ended = 0;

inline take_back(me) {
  atomic {
    assert(readers[me] == 0);
    shown[me] = 0
  }
}

proctype rank(byte me) {
  byte round = 0;
  byte peer;
  bool last;

  do
  :: round == ROUNDS -> break
  :: round < ROUNDS ->
    if
    :: true
    :: true -> break  /* the host's code throws, or returns early */
    fi;
    shown[me] = round + 1;
    atomic {
      if
#if BROKEN != arrives_in_spite_of_poison
      :: poisoned -> goto withdraw
#endif
      :: else ->
        last = (arrived + 1 == N);
        if
        :: last ->
          arrived = 0;
          generation = round + 1
        :: else -> arrived++
        fi
      fi
    }
    if
    :: last
    :: else ->
      if
#if BROKEN == waits_for_commit_alone
      :: generation != round
#else
      :: poisoned || generation != round
#endif
#if TIMEOUTS
      :: true ->
#if BROKEN == gives_up_blindly
        poisoned = true;
        goto withdraw
#else
        atomic {
          if
          :: poisoned || generation != round
          :: else ->
            poisoned = true;
            goto withdraw
          fi
        }
#endif
#endif
      fi;
      if
#if BROKEN == poison_undoes_commit
      :: poisoned -> goto withdraw
#else
      :: generation == round -> goto withdraw
#endif
      :: else
      fi
    fi;
    ran[round]++;
    peer = 0;
    do
    :: peer == N -> break
    :: peer < N ->
      atomic {
        assert(shown[peer] == round + 1);
        readers[peer]++
      }
      atomic {
        assert(shown[peer] == round + 1);
        readers[peer]--;
        peer++
      }
    od;
    exits++;
#if BROKEN == exit_obeys_poison
    exits >= (round + 1) * N || poisoned;
#elif BROKEN != no_exit_barrier
    exits >= (round + 1) * N;
#endif
    take_back(me);
    round++
  od;
withdraw:
  take_back(me);
  poisoned = true;  /* who has left ends its peers' waits, too */
  ended++
}

proctype outside() {
  if
  :: true
  :: true -> poisoned = true
  fi
}

init {
  byte i = 0;
  atomic {
    do
    :: i == N -> break
    :: i < N ->
      run rank(i);
      i++
    od;
    run outside();
    i = 0
  }
  ended == N;
  do
  :: i == ROUNDS -> break
  :: i < ROUNDS ->
    assert(ran[i] == 0 || ran[i] == N);
    i++
  od
}
