// AMX: products of 16 x 32 by 32 x 16 bfloat16 numbers, added up in float32.

#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BW__)
#define LAMINA_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

bool may_use_tiles() {  // the kernel hands out the tiles' state only on request
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
    return granted;
}

// Palette 1; eight tiles of 16 rows, 64 bytes each.
inline void begin_tiles() {
    alignas(64) static constexpr uint8_t config[64] = {1,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,
                                                       64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0,
                                                       0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,
                                                       16, 16, 16, 16, 16, 16, 16, 16};
    _tile_loadconfig(config);
}

}  // namespace
#endif
