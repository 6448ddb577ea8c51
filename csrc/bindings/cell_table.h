// The cells as the bindings see them: one row per cell of core/cell_list.h, in its order.
#pragma once

#include "../core/cells.h"

namespace sf {

struct CellInfo {
  const char* name;
  int64_t gates, slots, saved;
  bool has_c;
};
constexpr CellInfo kCells[] = {
#define SF_INFO(name, Type) {#name, Type::kGates, Type::kSlots, Type::kSaved, Type::kHasC},
    SF_CELLS(SF_INFO)
#undef SF_INFO
};
constexpr const char* kCellNames[] = {
#define SF_NAME(name, Type) #name,
    SF_CELLS(SF_NAME)
#undef SF_NAME
};

}  // namespace sf
