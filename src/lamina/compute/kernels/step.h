// What a step of generation is given: the model, the adapters and the rows.

#pragma once

#include "adapted.h"

namespace {

// All members of these structures have 8 bytes. `decoding/layouts.py` declares the same.
struct Norm {
    const void* weight;  // T, or null for no norm
    double eps, offset;
};

enum Place { Q, K, V, O, GATE, UP, DOWN, PLACES };

// The linear layers that read the same rows, in the order of a layer.
struct Phase {
    int64_t count;
    Place places[3];
};
enum PhasePlace { HEADS, ATTENDED, GATED, NARROWED, PHASES };
constexpr Phase PHASE[PHASES] = {{3, {Q, K, V}}, {1, {O}}, {2, {GATE, UP}}, {1, {DOWN}}};
enum NormPlace { INPUT, ATTENTION, MLP, OUTPUT, QUERY, KEY, NORMS };

struct Layer {
    Weight linears[PLACES];
    Norm norms[NORMS];
    int64_t heads, key_heads, size;
    double scale, softcap;
    int64_t window;
    int64_t activation;
    int64_t angles;  // which table of rotary angles
    void *keys, *values;
};

// A small network on attention's or the MLP's output; no weights where there is none.
struct Bottleneck {
    const float *down, *down_bias, *up, *up_bias;  // (width, D), (width,), (D, width), (D,)
    int64_t width;
    double scaling;
    int64_t activation;  // 0: SiLU, 1: GELU (exact), 2: ReLU, 3: tanh
    int64_t parallel;
};

struct AdapterLayer {
    Form linears[PLACES];
    const void* norms[NORMS];  // T: weights in place of the layer's own, or null
    Bottleneck networks[2];    // after attention, after the MLP
};

struct Adapter {
    const AdapterLayer* layers;
    const Form* head;
    const void* final_norm;
};

struct Segment {
    int64_t begin, end;
    const Adapter* adapter;  // null: the bare base
};

struct Model {
    const Layer* layers;
    int64_t layer_count, width, inner, attended;  // widths of the residual stream, the MLP and attention's output
    Norm final_norm;
    Weight head;
    double multiplier, softcap;  // of the logits
    int64_t rotated;
    const void *cosine[2], *sine[2];  // T, (positions, rotated)
};

struct Step {
    void* x;                   // T, (rows, width): embeddings, overwritten
    int64_t rows;
    const int64_t* positions;  // (rows,)
    const int64_t* tables;     // (rows,): which block table is a row's own
    const int32_t* blocks;     // (tables, table_row)
    int64_t table_row;
    const Segment* segments;
    int64_t segment_count, largest_rank;
    const int64_t* wanted;     // rows whose logits are wanted
    int64_t wanted_count;
    const Segment* wanted_segments;  // the same segments, of wanted rows
    float* logits;             // (wanted, vocabulary)
};

}  // namespace
