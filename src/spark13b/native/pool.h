// Threads that share the pieces of one job after another.
//
// The caller works, too, and waits for pieces, not for threads: a thread that the system has put aside, because other
// programs run, holds up no more than the one piece it has. (Barriers, such as OpenMP's, made a step ten times slower
// as soon as something else ran on one of two cores.)
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

class Pool {
  public:
    // The pool of the process, of all source files. It is never destroyed: its threads may sleep in it when the process ends.
    static Pool& of_process() {
        static Pool* pool = new Pool;
        return *pool;
    }

    // One caller at a time, with so many threads, itself among them. Fewer come when the system gives no more.
    class Turn {
      public:
        Turn(Pool& pool, int threads) : pool_(pool), lock_(pool.turn_) {
            try {
                while (static_cast<int>(pool.helpers_) < threads - 1) {
                    std::thread(&Pool::help, &pool, pool.helpers_ + 1).detach();
                    ++pool.helpers_;
                }
            } catch (const std::system_error&) {
            }
            pool.wanted_.store(threads - 1, std::memory_order_relaxed);
            pool.caller_core_.store(core(), std::memory_order_relaxed);
            pool.turns_.fetch_add(1, std::memory_order_relaxed);
        }

        // The most that the third argument of `share`'s work can be, plus one.
        int workers() const { return pool_.helpers_ + 1; }

        // Call work(piece, worker) for all pieces 0 to `pieces` - 1, and return when all are done.
        template <class Work>
        void share(int64_t pieces, const Work& work) {
            if (pieces == 1 || pool_.wanted_.load(std::memory_order_relaxed) == 0) {
                for (int64_t piece = 0; piece < pieces; ++piece) work(piece, 0);
                return;
            }
            pool_.publish(pieces, [](const void* what, int64_t piece, int worker) {
                (*static_cast<const Work*>(what))(piece, worker);
            }, &work);
        }

      private:
        Pool& pool_;
        std::lock_guard<std::mutex> lock_;
    };

  private:
    using Call = void (*)(const void*, int64_t, int);
    static constexpr int64_t kMost = 1 << 20;  // pieces of a job: they are counted in 20 bits
    static constexpr int kSpins = 4000;        // about 0.1 ms, longer than the pauses between the jobs of a step

    // Who takes a piece counts `ticket_` on by one: the number of the job (24 bits), its pieces (20), the next piece (20).
    // While the pieces taken are not done the caller stays, and with it what the job points to.
    static uint64_t next_of(uint64_t ticket) { return ticket & (kMost - 1); }
    static uint64_t pieces_of(uint64_t ticket) { return ticket >> 20 & (kMost - 1); }
    static bool has_piece(uint64_t ticket) { return next_of(ticket) < pieces_of(ticket); }

    void publish(int64_t pieces, Call call, const void* what) {
        call_ = call;
        what_ = what;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 40) + 1;
        ticket_.store(number << 40 | static_cast<uint64_t>(pieces) << 20);
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
        }
        work(0);
        for (int spin = 0; done_.load(std::memory_order_acquire) != pieces; ++spin) {
            if (spin < kSpins) {
                pause();
                continue;
            }
            std::unique_lock<std::mutex> lock(sleep_);  // leaves its core to the one that holds the last piece
            waits_.store(true);
            finished_.wait(lock, [&] { return done_.load() == pieces; });
            waits_.store(false);
        }
    }

    // Take and do pieces until there is none.
    void work(int worker) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (has_piece(ticket)) {
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            const int64_t pieces = pieces_of(ticket);
            call_(what_, next_of(ticket), worker);
            if (done_.fetch_add(1) + 1 == pieces && worker != 0 && waits_.load()) {
                std::lock_guard<std::mutex> lock(sleep_);
                finished_.notify_one();
            }
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }

    void help(int worker) {
        int64_t turn = -1;
        for (int spin = 0;; ++spin) {
            if (worker <= wanted_.load(std::memory_order_relaxed) && has_piece(ticket_.load())) {
                if (const int64_t now = turns_.load(std::memory_order_relaxed); now != turn) {
                    turn = now;
                    leave_core(caller_core_.load(std::memory_order_relaxed));
                }
                work(worker);
                spin = 0;
            } else if (spin < kSpins) {
                pause();
            } else {
                std::unique_lock<std::mutex> lock(sleep_);
                ++sleepers_;
                wake_.wait(lock, [&] { return worker <= wanted_.load() && has_piece(ticket_.load()); });
                --sleepers_;
                spin = 0;
            }
        }
    }

    static int core() {
#ifdef __linux__
        return sched_getcpu();
#else
        return -1;
#endif
    }

    // Go to another core if this thread is on that one. Linux wakes a thread beside its waker, and leaves both on one core
    // when the other ones have something to do: then two threads are slower than one.
    static void leave_core(int which) {
#ifdef __linux__
        cpu_set_t all, others;
        if (which < 0 || which >= CPU_SETSIZE || core() != which || sched_getaffinity(0, sizeof all, &all)) return;
        others = all;
        CPU_CLR(which, &others);
        if (CPU_COUNT(&others) == 0) return;
        sched_setaffinity(0, sizeof others, &others);
        sched_setaffinity(0, sizeof all, &all);  // gone; from here it may go where it likes
#else
        (void)which;
#endif
    }

    static void pause() {
#ifdef __x86_64__
        __builtin_ia32_pause();
#else
        std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
    }

    std::mutex turn_, sleep_;
    std::condition_variable wake_, finished_;
    Call call_ = nullptr;
    const void* what_ = nullptr;
    int helpers_ = 0;
    std::atomic<int> wanted_{0}, sleepers_{0}, caller_core_{-1};
    std::atomic<int64_t> turns_{0};
    std::atomic<bool> waits_{false};
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> done_{0};
};
