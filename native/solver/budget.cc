#include "budget.h"

#include <algorithm>
#include <queue>

namespace gimbal {
namespace {

// The step from one hull point to the next, dearest gain per migration first; ties by layer.
struct Step {
  int64_t gain;
  int64_t migrations;
  int32_t layer;
  int32_t to;  // index into the layer's points
};

// gain / migrations as an exact comparison.
bool better(const Step& a, const Step& b) {
  const __int128 left = static_cast<__int128>(a.gain) * b.migrations;
  const __int128 right = static_cast<__int128>(b.gain) * a.migrations;
  if (left != right) return left > right;
  if (a.layer != b.layer) return a.layer < b.layer;
  return a.to < b.to;
}

// Indices of the lower convex hull of points sorted by migrations with falling objectives.
std::vector<int32_t> hull_of(const std::vector<FrontierPoint>& p) {
  std::vector<int32_t> hull;
  for (int32_t i = 0; i < static_cast<int32_t>(p.size()); ++i) {
    const auto at = [&](size_t n) -> const FrontierPoint& { return p[static_cast<size_t>(hull[n])]; };
    while (hull.size() >= 2) {
      const FrontierPoint& a = at(hull.size() - 2);
      const FrontierPoint& b = at(hull.size() - 1);
      const FrontierPoint& c = p[static_cast<size_t>(i)];
      // b stays only where the gain per migration falls along a, b, c.
      const __int128 first = static_cast<__int128>(a.objective - b.objective) * (c.migrations - b.migrations);
      const __int128 second = static_cast<__int128>(b.objective - c.objective) * (b.migrations - a.migrations);
      if (first > second) break;
      hull.pop_back();
    }
    hull.push_back(i);
  }
  return hull;
}

}  // namespace

void keep_efficient(std::vector<FrontierPoint>* points) {
  std::sort(points->begin(), points->end(), [](const FrontierPoint& a, const FrontierPoint& b) {
    if (a.migrations != b.migrations) return a.migrations < b.migrations;
    if (a.objective != b.objective) return a.objective < b.objective;
    return a.id < b.id;
  });
  size_t kept = 0;
  for (const FrontierPoint& p : *points) {
    if (kept > 0 && p.objective >= (*points)[kept - 1].objective) continue;
    (*points)[kept++] = p;
  }
  points->resize(kept);
}

BudgetShare share_budget(const std::vector<std::vector<FrontierPoint>>& layers, int64_t budget) {
  BudgetShare share;
  share.choice.assign(layers.size(), 0);
  std::vector<Step> steps;
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::vector<int32_t> hull = hull_of(layers[l]);
    for (size_t i = 1; i < hull.size(); ++i) {
      const FrontierPoint& a = layers[l][static_cast<size_t>(hull[i - 1])];
      const FrontierPoint& b = layers[l][static_cast<size_t>(hull[i])];
      steps.push_back({a.objective - b.objective, b.migrations - a.migrations, static_cast<int32_t>(l), hull[i]});
    }
  }
  std::sort(steps.begin(), steps.end(), better);
  int64_t left = budget;
  std::vector<char> closed(layers.size(), 0);  // a step that did not fit ends its layer's way along the hull
  for (const Step& s : steps) {
    const size_t l = static_cast<size_t>(s.layer);
    if (closed[l]) continue;
    if (s.migrations > left) {
      closed[l] = 1;
      if (share.price == 0) share.price = s.gain / s.migrations;  // nothing fitted yet: what a fitting one may be worth
      continue;
    }
    left -= s.migrations;
    share.choice[l] = s.to;
    share.price = s.gain / s.migrations;
  }
  // What is left buys the best single steps to points off the hull.
  for (;;) {
    Step best{0, 1, -1, -1};
    for (size_t l = 0; l < layers.size(); ++l) {
      const FrontierPoint& now = layers[l][static_cast<size_t>(share.choice[l])];
      for (size_t i = static_cast<size_t>(share.choice[l]) + 1; i < layers[l].size(); ++i) {
        const int64_t extra = layers[l][i].migrations - now.migrations;
        if (extra > left) break;
        const Step s{now.objective - layers[l][i].objective, extra, static_cast<int32_t>(l), static_cast<int32_t>(i)};
        if (best.layer < 0 || better(s, best)) best = s;
      }
    }
    if (best.layer < 0) break;
    left -= best.migrations;
    share.choice[static_cast<size_t>(best.layer)] = best.to;
  }
  const bool any_closed = std::find(closed.begin(), closed.end(), 1) != closed.end();
  if (left > 0 && !any_closed) share.price = 0;  // more budget would change nothing
  return share;
}

}  // namespace gimbal
