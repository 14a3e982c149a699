// The threads on which the library runs. The program has its own pool instead of the library's OpenMP team, to count
// finished tasks for the progress bar.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "progress.h"
#include "xent/xent.h"

namespace xent_cli {

inline constexpr int kMaxThreads = 1024;

class ThreadPool {
 public:
  // Starts threads - 1 threads beside the calling one. 0: as many as the library would use. Throws Error.
  ThreadPool(int threads, Progress &progress);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int threads() const { return threads_; }
  // Returns the execution policy that hands these threads to the library. It points to this object.
  xent_exec exec();

 private:
  static void ParallelFor(void *ctx, int64_t count, xent_task task, void *arg);
  void Run(int64_t count, xent_task task, void *arg);
  void Work();
  void RunTasks();
  void Stop();

  const int threads_;
  Progress &progress_;
  std::vector<std::thread> workers_;

  std::mutex mutex_;
  std::condition_variable begin_, end_;
  bool stopping_ = false;
  uint64_t generation_ = 0;  // of the job below; a worker runs each once
  int working_ = 0;          // workers that have not finished their part of it
  int64_t count_ = 0;
  xent_task task_ = nullptr;
  void *arg_ = nullptr;
  std::atomic<int64_t> next_{0}, done_{0};
};

}  // namespace xent_cli
