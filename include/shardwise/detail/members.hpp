#pragma once

#include <cstddef>
#include <cstdint>

namespace shardwise::inline v0_1::detail {

/// What travels together, in order: a ring of pointers through the members themselves
/// (Member::next_member), of which this one knows the last. Owns none of them.
template <class Member>
class Members {
 public:
  Members() = default;
  Members(const Members&) = delete;
  Members& operator=(const Members&) = delete;

  class Iterator {
   public:
    using value_type = Member*;
    using difference_type = std::ptrdiff_t;

    Iterator() = default;
    Iterator(Member* at, const Member* last) noexcept : at_(at), last_(last) {}
    [[nodiscard]] Member* operator*() const noexcept { return at_; }
    Iterator& operator++() noexcept {
      at_ = at_ == last_ ? nullptr : at_->next_member;
      return *this;
    }
    Iterator operator++(int) noexcept {
      Iterator before = *this;
      ++*this;
      return before;
    }
    [[nodiscard]] bool operator==(const Iterator& other) const noexcept { return at_ == other.at_; }

   private:
    Member* at_ = nullptr;  // null: the end
    const Member* last_ = nullptr;
  };

  [[nodiscard]] Iterator begin() const noexcept {
    return {last_ == nullptr ? nullptr : last_->next_member, last_};
  }
  [[nodiscard]] Iterator end() const noexcept { return {nullptr, last_}; }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  /// Of what is not empty.
  [[nodiscard]] Member& front() const noexcept { return *last_->next_member; }
  [[nodiscard]] Member& back() const noexcept { return *last_; }

  /// `member` is in no other list.
  void push_back(Member& member) noexcept {
    member.next_member = empty() ? &member : last_->next_member;
    if (!empty()) last_->next_member = &member;
    last_ = &member;
    ++size_;
  }
  /// `member` is one of them.
  void erase(Member& member) noexcept {
    Member* before = last_;
    while (before->next_member != &member) before = before->next_member;
    before->next_member = member.next_member;
    if (last_ == &member) last_ = before;
    if (--size_ == 0) last_ = nullptr;
  }

 private:
  Member* last_ = nullptr;
  std::uint32_t size_ = 0;
};

}  // namespace shardwise::inline v0_1::detail
