// Classifies whole texts: what seqcls_classify() does.
#pragma once

#include <memory>

#include "model.h"
#include "seqcls.h"

namespace sf::runtime {

seqcls_status classify(const std::shared_ptr<const Model>& model, const seqcls_texts& call);

}  // namespace sf::runtime
