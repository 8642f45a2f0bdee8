// What is dear to make and kept between jobs.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace gimbal::addon {

// Idle things of one kind. Any thread.
template <typename T>
class Pool {
 public:
  explicit Pool(size_t kept) : kept_(kept) {}

  std::unique_ptr<T> take() {
    std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<T>();
    std::unique_ptr<T> item = std::move(idle_.back());
    idle_.pop_back();
    return item;
  }

  // Keeps the item or, where enough are kept, frees it on the calling thread.
  void give(std::unique_ptr<T> item) {
    std::lock_guard lock(mutex_);
    if (idle_.size() < kept_) idle_.push_back(std::move(item));
  }

  // Keeps nothing from now on; returns what was idle.
  std::vector<std::unique_ptr<T>> close() {
    std::lock_guard lock(mutex_);
    kept_ = 0;
    return std::exchange(idle_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
  size_t kept_;
};

// An item out of a pool, given back at the end of the scope.
template <typename T>
class Lease {
 public:
  explicit Lease(Pool<T>& pool) : pool_(&pool), item_(pool.take()) {}
  ~Lease() { pool_->give(std::move(item_)); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  T& operator*() { return *item_; }
  const T& operator*() const { return *item_; }

 private:
  Pool<T>* pool_;
  std::unique_ptr<T> item_;
};

}  // namespace gimbal::addon
