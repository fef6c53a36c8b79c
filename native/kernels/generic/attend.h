// KV pages: writing a token, and attention to a list of pages.
#pragma once

#include "kernels/generic/attend_f16.h"
#include "kernels/generic/attend_int8.h"

namespace hotset::kernels::generic {

template <class V>
void kv_store(KvType type, const float* k, const float* v, size_t hd, size_t slot, uint8_t* page) {
  if (type == KvType::f16)
    kv_store_f16<V>(k, v, hd, slot, page);
  else
    kv_store_int8<V>(k, v, hd, slot, page);
}

// Queries four at a time, which read the keys and values together.
template <class V, class Page>
void attend_page(const Page& page, int64_t position, const AttendState& a, Ahead ahead) {
  ActiveQuery active[kTile];
  size_t count = 0;
  for (size_t i = 0; i < a.n; ++i) {
    const int64_t lo = a.lo[i] - position, hi = a.hi[i] - position;
    const int64_t begin = lo > 0 ? lo : 0, end = hi < int64_t{kPage} ? hi : int64_t{kPage};
    if (begin < end) active[count++] = {i, static_cast<size_t>(begin), static_cast<size_t>(end)};
  }
  size_t i = 0;
  for (; i + 4 <= count; i += 4) attend_queries<V, 4>(page, a, active + i, ahead);
  switch (count - i) {
    case 3:
      return attend_queries<V, 3>(page, a, active + i, ahead);
    case 2:
      return attend_queries<V, 2>(page, a, active + i, ahead);
    case 1:
      return attend_queries<V, 1>(page, a, active + i, ahead);
    default:
      return;
  }
}

template <class V>
void attend(KvType type, const uint8_t* const* pages, size_t n_pages, int64_t first_page,
            const AttendState& a) {
  WordQueries words;
  if (type == KvType::int8 && n_pages > 0) queries_to_words<V>(a, words);
  for (size_t i = 0; i < n_pages; ++i) {
    const int64_t position = (first_page + static_cast<int64_t>(i)) * int64_t{kPage};
    const uint8_t* next = i + 1 < n_pages ? pages[i + 1] : a.next;
    const Ahead ahead(next, kv_page_bytes(type, a.hd));
    if (type == KvType::f16)
      attend_page<V>(PageF16(pages[i], a.hd), position, a, ahead);
    else
      attend_page<V>(PageInt8(pages[i], a.hd, &words), position, a, ahead);
  }
}

}  // namespace hotset::kernels::generic
