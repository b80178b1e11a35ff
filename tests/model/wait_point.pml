/*
 * comm/thread_wait.hpp: sleepers count themselves before their last look, a notifier writes before it
 * looks at the count, and passes the mutex once between that and the signal. No wake-up is lost: every
 * sleeper ends. BROKEN names one mistake; each must be found.
 */
#define SLEEPERS 2
#define counts_after_looking 1
#define signals_without_the_mutex 2
#define looks_before_writing 3
#ifndef BROKEN
#define BROKEN 0
#endif

bool ready = false;
byte sleepers = 0;
bool locked = false;
byte signal = 0;  /* how often all that wait were woken */

inline lock() {
  atomic {
    !locked;
    locked = true
  }
}

proctype sleeper() {
  byte seen;
  lock();
#if BROKEN == counts_after_looking
  if
  :: ready -> goto done
  :: else
  fi;
#endif
  sleepers++;
#if BROKEN == counts_after_looking
  goto asleep;
#endif
  do
  :: ready -> break
  :: else ->
asleep:
    atomic {  /* a condition variable gives the mutex back and waits in one step */
      seen = signal;
      locked = false
    }
    signal != seen;
    lock()
  od;
  sleepers--;
done:
  locked = false
}

proctype notifier() {
#if BROKEN == looks_before_writing
  if
  :: sleepers == 0 ->
    ready = true;
    goto done
  :: else
  fi;
#endif
  ready = true;
  if
  :: sleepers == 0 -> goto done
  :: else
  fi;
#if BROKEN != signals_without_the_mutex
  lock();
  locked = false;
#endif
  signal++;
done:
  skip
}

init {
  byte i = 0;
  atomic {
    do
    :: i == SLEEPERS -> break
    :: i < SLEEPERS ->
      run sleeper();
      i++
    od;
    run notifier()
  }
}
