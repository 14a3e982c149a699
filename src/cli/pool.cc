// A pool of threads with dynamic scheduling: a free thread takes the next task.
#include "pool.h"

#include <algorithm>
#include <system_error>

#include "error.h"

namespace xent_cli {

ThreadPool::ThreadPool(int threads, Progress &progress)
    : threads_(threads > 0 ? threads : std::clamp(static_cast<int>(xent_default_threads()), 1, kMaxThreads)),
      progress_(progress) {
  try {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back(&ThreadPool::Work, this);
  } catch (const std::system_error &error) {
    Stop();
    throw Error("cannot start " + std::to_string(threads_) + " threads: " + error.code().message());
  }
}

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  begin_.notify_all();
  for (std::thread &worker : workers_) worker.join();
}

xent_exec ThreadPool::exec() {
  xent_exec exec = XENT_EXEC_INIT;
  // With one thread the library makes no tasks, which would show no progress. The tasks of two do as well.
  exec.threads = std::max(threads_, 2);
  exec.parallel_for = &ThreadPool::ParallelFor;
  exec.ctx = this;
  return exec;
}

void ThreadPool::ParallelFor(void *ctx, int64_t count, xent_task task, void *arg) {
  static_cast<ThreadPool *>(ctx)->Run(count, task, arg);
}

void ThreadPool::Run(int64_t count, xent_task task, void *arg) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    count_ = count;
    task_ = task;
    arg_ = arg;
    next_ = 0;
    done_ = 0;
    working_ = static_cast<int>(workers_.size());
    ++generation_;
  }
  begin_.notify_all();
  RunTasks();
  std::unique_lock<std::mutex> lock(mutex_);
  end_.wait(lock, [this] { return working_ == 0; });
}

void ThreadPool::Work() {
  uint64_t finished = 0;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      begin_.wait(lock, [&] { return stopping_ || generation_ != finished; });
      if (stopping_) return;
      finished = generation_;
    }
    RunTasks();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      --working_;
    }
    end_.notify_one();
  }
}

void ThreadPool::RunTasks() {
  for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
    task_(arg_, i);
    progress_.Update(static_cast<double>(done_.fetch_add(1) + 1) / static_cast<double>(count_));
  }
}

}  // namespace xent_cli
