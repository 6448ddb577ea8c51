// The list of cells: name, type in cells.h. Everything that switches on a cell expands it; the index is Layer::cell.
#pragma once

#define SF_CELLS(X)    \
  X(rnn_tanh, RnnTanh) \
  X(rnn_relu, RnnRelu) \
  X(gru, Gru)          \
  X(lstm, Lstm)

namespace sf {

enum CellIndex {
#define SF_INDEX(name, Type) kCell_##name,
  SF_CELLS(SF_INDEX)
#undef SF_INDEX
};

}  // namespace sf
