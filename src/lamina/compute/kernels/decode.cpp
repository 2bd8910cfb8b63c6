// One step of generation: every decoder layer, and the head, for the new tokens of many sequences over a block-wise cache.
//
//     h = x + post(o(attention(rotary(q, k), v)))          q, k, v of norm(x)
//     y = h + post(down(act(gate) up))                     gate, up of norm(h)
//
// The rows of a step are new tokens: one of a sequence that is being answered, or many of a prompt. Every row is computed as it
// would be alone: its sums run in an order that depends on its own position only. One parallel region runs the whole step; its
// phases are divided among the threads and separated by barriers.

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>

#include "cached.h"
#include "rows.h"
#include "step.h"

namespace {

inline float exact_activation(float x, int64_t kind) {
    switch (kind) {
        case 0: return x / (1.0f + std::exp(-x));
        case 1: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
        case 2: return x > 0.0f ? x : 0.0f;
        default: return std::tanh(x);
    }
}

// Where the threads of a step wait for each other. They spin for a moment, since a phase takes microseconds, and then let others
// run: where the machine is busy, the thread that is waited for may be one of those that want to.
struct Barrier {
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<int64_t> round{0};

    void wait(int64_t count) {
        if (count == 1) return;
        const int64_t own = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(own + 1, std::memory_order_release);
            return;
        }
        for (int64_t spins = 0; round.load(std::memory_order_acquire) == own; ++spins) {
            if (spins < SPINS)
                pause();
            else
                sched_yield();
        }
    }

   private:
    // About 0.3 ms. To let others run takes a call of the system, which a step of 300 phases would notice.
    static constexpr int64_t SPINS = 20000;
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
};

template <typename T>
class Run {
   public:
    Run(const Model& model, const Step& step)
        : model(model), step(step), rows(step.rows), x(static_cast<T*>(step.x)), normed(rows * model.width),
          out(rows * model.width), heads(rows * heads_width(model)), attended(rows * model.attended),
          inner(rows * model.inner), scaled(rows * widest(model)), h(rows * (step.largest_rank + 1) * 3),
          chosen(step.wanted_count * model.width + 1) {}

    void run() {
#pragma omp parallel
        {
            Buffer<Span> spans(6 * step.segment_count);
            Buffer<Piece> pieces(6 * step.segment_count);
            const Thread me{omp_get_thread_num(), omp_get_num_threads(), &barrier, spans.data, pieces.data};
            // Of the widest weight that may be packed, and the sums of a panel for all rows, two weights at once.
            Buffer<T> scratch(PANEL * widest(model));
            Buffer<float> sums(2 * (rows > step.wanted_count ? rows : step.wanted_count) * PANEL);
            for (int64_t l = 0; l < model.layer_count; ++l) layer(l, me, scratch.data, sums.data);
            if (model.layer_count) end_of_layer(model.layer_count - 1, me, [](int64_t) {});
            me.wait();
            if (step.wanted_count) head(me, scratch.data, sums.data);
        }
    }

   private:
    using Piece = typename Ahead<T>::Piece;

    struct Thread {
        int64_t number, count;
        Barrier* all;
        Span* spans;    // (6, segments): which adapter acts how on the rows of the linear layers of a phase, and of the next
        Piece* pieces;  // (6, segments): what is fetched ahead
        int64_t first(int64_t items) const { return items * number / count; }
        int64_t last(int64_t items) const { return items * (number + 1) / count; }
        void wait() const { all->wait(count); }
    };

    static int64_t heads_width(const Model& model) {
        int64_t most = 0;
        for (int64_t l = 0; l < model.layer_count; ++l) {
            const Layer& layer = model.layers[l];
            most = std::max(most, (layer.heads + 2 * layer.key_heads) * layer.size);
        }
        return most;
    }
    static int64_t widest(const Model& model) { return std::max(model.width, std::max(model.inner, model.attended)); }

    template <typename Choose>
    Adapted<T> adapted(int64_t slot, const Weight& weight, const Segment* segments, Span* spans, Choose choose) {
        for (int64_t s = 0; s < step.segment_count; ++s) {
            const Form* form = segments[s].adapter ? choose(*segments[s].adapter) : nullptr;
            spans[s] = Span{segments[s].begin, segments[s].end, form};
        }
        const int64_t h_row = step.largest_rank + 1;
        return {&weight, spans, step.segment_count, h + slot * rows * h_row, h_row};
    }

    // The linear layers of a phase, with spans (3, segments). Returns how many there are.
    int64_t adapted_phase(int64_t l, PhasePlace phase, Span* spans, Adapted<T>* linears) {
        const auto [count, places] = PHASE[phase];
        for (int64_t slot = 0; slot < count; ++slot)
            linears[slot] = adapted(slot, model.layers[l].linears[places[slot]], step.segments, spans + slot * step.segment_count,
                                    [&, place = places[slot]](const Adapter& a) { return used(a.layers[l].linears[place]); });
        return count;
    }

    // The rank-sized products of a thread, h = x A^T. Each waits until the one after it is known, whose rows it fetches.
    static void narrow(const Adapted<T>* linears, const Input<T>* inputs, int64_t count, Thread me) {
        struct Part {
            const Adapted<T>* linear;
            const Span* span;
            int64_t first, last;
        } part{};
        const auto run = [&](const T* later) {
            if (part.linear) part.linear->narrow(inputs[part.linear - linears], *part.span, part.first, part.last, later);
        };
        own_ranks(linears, count, me.number, me.count, [&](const Adapted<T>& linear, const Span& span, int64_t first, int64_t last) {
            run(static_cast<const T*>(span.form->A) + first * linear.weight->columns);
            part = {&linear, &span, first, last};
        });
        run(nullptr);
    }

    // What a thread reads of the adapters after the weights of a phase: first the factors B of the phase's later panels, which
    // `move_ahead` names, then its share of the factors A of the next phase.
    Ahead<T> begin_ahead(int64_t l, PhasePlace phase, Thread me) {
        Ahead<T> ahead{{{me.pieces, 0, 0}, {me.pieces + 3 * step.segment_count, 0, 0}}};
        auto& [soon, later] = ahead.lists;
        std::fill_n(soon.first, 3 * step.segment_count, Piece{});
        const bool ends = phase + 1 == PHASES;
        if (ends && l + 1 == model.layer_count) return ahead;
        Adapted<T> next[3];
        const int64_t count = adapted_phase(l + ends, ends ? HEADS : static_cast<PhasePlace>(phase + 1),
                                            me.spans + 3 * step.segment_count, next);
        own_ranks(next, count, me.number, me.count, [&](const Adapted<T>& linear, const Span& span, int64_t first, int64_t last) {
            const T* A = static_cast<const T*>(span.form->A);
            const int64_t width = linear.weight->columns;
            later.first[later.count++] = {A + first * width, A + last * width};
        });
        return ahead;
    }

    // Before a panel of the linear layers [slot, slot + count): names their adapters' factors B of the panel after it.
    void move_ahead(Ahead<T>* ahead, const Adapted<T>* linears, int64_t slot, int64_t count, int64_t first) const {
        auto& soon = ahead->lists[0];
        const int64_t panel = first / PANEL + 1;
        soon.place = slot * step.segment_count;
        soon.count = (slot + count) * step.segment_count;
        for (int64_t i = soon.place; i < soon.count; ++i) {
            const Adapted<T>& linear = linears[i / step.segment_count];
            const int64_t s = i % step.segment_count, rank = linear.rank(s);
            Piece& piece = soon.first[i];
            if (!rank || panel >= panels_of(linear.weight->rows)) {
                piece.end = piece.at;
                continue;
            }
            const T* B = static_cast<const T*>(linear.spans[s].form->B) + panel * rank * PANEL;
            piece = {piece.at > B ? piece.at : B, B + rank * PANEL};
        }
    }

    // Products of the linear layers of a phase. body(slot, first, count, sums) takes each panel; of GATED, that of both.
    template <typename Body>
    void products(int64_t l, PhasePlace phase, const T* in, int64_t width, Thread me, T* scratch, float* sums, Body body) {
        Adapted<T> linears[3];
        const int64_t count = adapted_phase(l, phase, me.spans, linears);
        Input<T> inputs[3];
        bool forms = false;
        int64_t scaling = 0;
        for (int64_t slot = 0; slot < count; ++slot) {
            inputs[slot] = {in, scaled.data, width};
            forms |= linears[slot].has_forms();
            scaling += any_scaled(linears[slot].spans, step.segment_count);
        }
        if (scaling) {
            // There is one scaled copy of a row: `decoding/forms.py` refuses adapters that scale it twice. If one linear layer
            // alone has scaled inputs, it reads all rows from the copy, so that its rows stay together.
            for (int64_t slot = 0; slot < count; ++slot) {
                const Span* spans = linears[slot].spans;
                if (!any_scaled(spans, step.segment_count)) continue;
                scale_inputs(in, scaled.data, width, spans, step.segment_count, scaling == 1, me.number, me.count);
                if (scaling == 1) inputs[slot].x = scaled.data;
            }
            me.wait();
        }
        if (forms) {
            narrow(linears, inputs, count, me);
            me.wait();
        }
        // With few rows every tile fetches the weight itself.
        const bool fetches = forms && rows > OUTPUTS * ROWS;
        Ahead<T> pieces{};
        if (fetches) pieces = begin_ahead(l, phase, me);
        Ahead<T>* ahead = fetches ? &pieces : nullptr;
        int64_t all = 0, seen = 0;
        if (phase == GATED) {
            all = panels_of(linears[0].weight->rows);
            own_panels(linears[0].weight->rows, &seen, me.first(all), me.last(all), [&](int64_t f, int64_t n) {
                if (ahead) move_ahead(ahead, linears, 0, count, f);
                for (int64_t slot = 0; slot < count; ++slot)
                    linears[slot].panel(inputs[slot], f, n, scratch, sums + slot * rows * PANEL, ahead);
                body(0, f, n, sums);
            });
        } else {
            for (int64_t slot = 0; slot < count; ++slot) all += panels_of(linears[slot].weight->rows);
            for (int64_t slot = 0; slot < count; ++slot)
                own_panels(linears[slot].weight->rows, &seen, me.first(all), me.last(all), [&](int64_t f, int64_t n) {
                    if (ahead) move_ahead(ahead, linears, slot, 1, f);
                    linears[slot].panel(inputs[slot], f, n, scratch, sums, ahead);
                    body(slot, f, n, sums);
                });
        }
        me.wait();
    }

    static const Form* used(const Form& form) {
        const bool acts = form.rank || form.columns || form.inputs || form.outputs || form.delta || form.added ||
                          form.weight || form.bias;
        return acts ? &form : nullptr;
    }

    static void store_panel(const float* sums, int64_t rows, int64_t count, T* to, int64_t to_row) {
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t n = 0; n < count; n += LANES) {
                const int64_t left = count - n < LANES ? count - n : LANES;
                if (left == LANES)
                    put(to + m * to_row + n, take(sums + m * PANEL + n));
                else
                    Part{left}.put(to + m * to_row + n, take(sums + m * PANEL + n));
            }
    }

    void layer(int64_t l, Thread me, T* scratch, float* sums) {
        const Layer& layer = model.layers[l];
        const int64_t width = model.width, size = layer.size, row = (layer.heads + 2 * layer.key_heads) * size;
        if (l == 0) {
            for (int64_t m = me.first(rows); m < me.last(rows); ++m) norm(l, INPUT, m, x + m * width, normed + m * width, width);
        } else {
            end_of_layer(l - 1, me, [&](int64_t m) { norm(l, INPUT, m, x + m * width, normed + m * width, width); });
        }
        me.wait();
        const int64_t starts[3] = {0, layer.heads * size, (layer.heads + layer.key_heads) * size};
        products(l, HEADS, normed.data, width, me, scratch, sums, [&](int64_t slot, int64_t f, int64_t n, float* y) {
            store_panel(y, rows, n, heads + starts[slot] + f, row);
        });
        for (int64_t m = me.first(rows); m < me.last(rows); ++m) begin_attention(l, m, row);
        if (me.number == 0) next.store(0);
        me.wait();
        for (;;) {
            const int64_t task = next.fetch_add(1);
            if (task >= rows * layer.key_heads) break;
            attend(layer, task / layer.key_heads, task % layer.key_heads, row);
        }
        me.wait();
        products(l, ATTENDED, attended.data, model.attended, me, scratch, sums, [&](int64_t, int64_t f, int64_t n, float* y) {
            store_panel(y, rows, n, out + f, width);
        });
        for (int64_t m = me.first(rows); m < me.last(rows); ++m) {
            add_to_stream(l, m, ATTENTION, normed + m * width);
            norm(l, MLP, m, x + m * width, normed + m * width, width);
        }
        me.wait();
        products(l, GATED, normed.data, width, me, scratch, sums, [&](int64_t, int64_t f, int64_t n, float* y) {
            T gate[PANEL], up[PANEL];
            for (int64_t m = 0; m < rows; ++m) {
                for (int64_t j = 0; j < PANEL; j += LANES) {
                    put(gate + j, take(y + m * PANEL + j));
                    put(up + j, take(y + (rows + m) * PANEL + j));
                }
                T* to = inner + m * model.inner + f;
                layer.activation == 0 ? gated_row<0>(gate, up, to, n) : gated_row<1>(gate, up, to, n);
            }
        });
        products(l, NARROWED, inner.data, model.inner, me, scratch, sums, [&](int64_t, int64_t f, int64_t n, float* y) {
            store_panel(y, rows, n, out + f, width);
        });
    }

    template <typename Body>
    void end_of_layer(int64_t l, Thread me, Body body) {
        for (int64_t m = me.first(rows); m < me.last(rows); ++m) {
            add_to_stream(l, m, OUTPUT, normed + m * model.width);
            body(m);
        }
    }

    // x += norm(out), after the networks of the row's adapter; `given` is what the sublayer read.
    void add_to_stream(int64_t l, int64_t m, NormPlace place, const T* given) {
        const int64_t width = model.width;
        T *stream = x + m * width, *y = out + m * width;
        if (const AdapterLayer* own = adapter_layer(l, m)) {
            const Bottleneck& network = own->networks[place == OUTPUT];
            if (network.width) apply(network, network.parallel ? given : y, y);
        }
        if (model.layers[l].norms[place].weight) norm(l, place, m, y, y, width);
        for_each_vector(width, [&](int64_t j, auto at) { at.put(stream + j, at.take(stream + j) + at.take(y + j)); });
    }

    void apply(const Bottleneck& network, const T* from, T* y) const {
        Buffer<float> narrow(network.width);
        for (int64_t n = 0; n < network.width; ++n) {
            Floats sum = {};
            const float* w = network.down + n * model.width;
            for_each_vector(model.width, [&](int64_t j, auto at) { sum += at.take(from + j) * at.take(w + j); });
            narrow[n] = exact_activation(sum_of(sum) + network.down_bias[n], network.activation);
        }
        for (int64_t j = 0; j < model.width; ++j) {
            float sum = network.up_bias[j];
            for (int64_t n = 0; n < network.width; ++n) sum += narrow[n] * network.up[j * network.width + n];
            store(y + j, load(y + j) + static_cast<float>(network.scaling) * sum);
        }
    }

    const Segment* segment_of(int64_t m) const {
        for (int64_t s = 0; s < step.segment_count; ++s)
            if (m < step.segments[s].end) return step.segments + s;
        return nullptr;
    }

    const AdapterLayer* adapter_layer(int64_t l, int64_t m) const {
        const Segment* segment = segment_of(m);
        return segment && segment->adapter ? segment->adapter->layers + l : nullptr;
    }

    void norm(int64_t l, NormPlace place, int64_t m, const T* from, T* to, int64_t width) const {
        const Norm& own = model.layers[l].norms[place];
        const AdapterLayer* adapter = adapter_layer(l, m);
        const void* weight = adapter && adapter->norms[place] ? adapter->norms[place] : own.weight;
        norm_row(from, to, static_cast<const T*>(weight), width, static_cast<float>(own.eps), static_cast<float>(own.offset));
    }

    // Norms and rotates a row's queries and keys, and puts its keys and values into the cache.
    void begin_attention(int64_t l, int64_t m, int64_t row) {
        const Layer& layer = model.layers[l];
        const int64_t size = layer.size, position = step.positions[m], half = model.rotated / 2;
        T* own = heads + m * row;
        const T* cosine = static_cast<const T*>(model.cosine[layer.angles]) + position * model.rotated;
        const T* sine = static_cast<const T*>(model.sine[layer.angles]) + position * model.rotated;
        for (int64_t n = 0; n < layer.heads + layer.key_heads; ++n) {
            const NormPlace place = n < layer.heads ? QUERY : KEY;
            if (layer.norms[place].weight) norm(l, place, m, own + n * size, own + n * size, size);
            rotate_head(own + n * size, cosine, sine, half, 1.0f);
        }
        const int64_t block = block_of(m, position / BLOCK_TOKENS), slot = position % BLOCK_TOKENS;
        const T *keys = own + layer.heads * size, *values = keys + layer.key_heads * size;
        for (int64_t j = 0; j < layer.key_heads; ++j) {
            const int64_t at = (block * layer.key_heads + j) * BLOCK_TOKENS * size;
            put_key(static_cast<T*>(layer.keys) + at, keys + j * size, slot, size);
            std::memcpy(static_cast<T*>(layer.values) + at + slot * size, values + j * size, sizeof(T) * size);
        }
    }

    int64_t block_of(int64_t m, int64_t index) const { return step.blocks[step.tables[m] * step.table_row + index]; }

    void attend(const Layer& layer, int64_t m, int64_t j, int64_t row) {
        const int64_t group = layer.heads / layer.key_heads, size = layer.size, position = step.positions[m];
        const Cached<T> cached{static_cast<const T*>(layer.keys), static_cast<const T*>(layer.values),
                               step.blocks + step.tables[m] * step.table_row, layer.key_heads, j, size};
        const int64_t first = layer.window && position >= layer.window ? position - layer.window + 1 : 0;
        const AttentionCall call{first, position + 1, static_cast<float>(layer.scale), static_cast<float>(layer.softcap)};
        attend_cached(cached, heads + m * row + j * group * size, group, call,
                      attended + m * model.attended + j * group * size);
    }

    void head(Thread me, T* scratch, float* sums) {
        const int64_t width = model.width, wanted = step.wanted_count;
        for (int64_t i = me.first(wanted); i < me.last(wanted); ++i) {
            const int64_t m = step.wanted[i];
            const Segment* segment = segment_of(m);
            const void* own = segment && segment->adapter ? segment->adapter->final_norm : nullptr;
            norm_row(x + m * width, chosen + i * width, static_cast<const T*>(own ? own : model.final_norm.weight), width,
                     static_cast<float>(model.final_norm.eps), static_cast<float>(model.final_norm.offset));
        }
        me.wait();
        const Adapted<T> linear = adapted(0, model.head, step.wanted_segments, me.spans,
                                          [](const Adapter& a) { return a.head ? used(*a.head) : nullptr; });
        const Input<T> input{chosen.data, scaled.data, width};
        if (linear.has_forms()) {
            scale_inputs(chosen.data, scaled.data, width, linear.spans, step.segment_count, false, me.number, me.count);
            me.wait();
            narrow(&linear, &input, 1, me);
            me.wait();
        }
        const int64_t all = panels_of(model.head.rows);
        const float multiplier = static_cast<float>(model.multiplier), cap = static_cast<float>(model.softcap);
        int64_t seen = 0;
        own_panels(model.head.rows, &seen, me.first(all), me.last(all), [&](int64_t first, int64_t count) {
            linear.panel(input, first, count, scratch, sums, nullptr);
            for (int64_t i = 0; i < wanted; ++i)
                for (int64_t n = 0; n < count; ++n) {
                    const float value = sums[i * PANEL + n] * multiplier;
                    step.logits[i * model.head.rows + first + n] = cap != 0.0f ? cap * std::tanh(value / cap) : value;
                }
        });
    }

    const Model& model;
    const Step& step;
    const int64_t rows;
    T* const x;
    Buffer<T> normed, out, heads, attended, inner, scaled;
    Buffer<float> h;
    Buffer<T> chosen;
    alignas(64) std::atomic<int64_t> next{0};
    Barrier barrier;
};

}  // namespace

// The sizes of the structures, which the caller compares with its own.
extern "C" void lamina_decode_sizes(int64_t* sizes) {
    const int64_t own[] = {sizeof(Weight), sizeof(Norm), sizeof(Layer), sizeof(Form), sizeof(Bottleneck),
                           sizeof(AdapterLayer), sizeof(Adapter), sizeof(Segment), sizeof(Model), sizeof(Step)};
    std::memcpy(sizes, own, sizeof own);
}

#define LAMINA_DECODE(suffix, T)                                                                                             \
    extern "C" void lamina_decode_##suffix(const Model* model, const Step* step) { Run<T>(*model, *step).run(); }           \
    extern "C" void lamina_store_cache_##suffix(const T* keys, const T* values, T* to_keys, T* to_values,                    \
                                                const int32_t* blocks, int64_t first, int64_t tokens, int64_t key_heads,     \
                                                int64_t size) {                                                              \
        for (int64_t t = 0; t < tokens; ++t)                                                                                 \
            for (int64_t j = 0; j < key_heads; ++j) {                                                                        \
                const int64_t block = blocks[(first + t) / BLOCK_TOKENS], slot = (first + t) % BLOCK_TOKENS;                 \
                const int64_t at = (block * key_heads + j) * BLOCK_TOKENS * size;                                            \
                put_key(to_keys + at, keys + (j * tokens + t) * size, slot, size);                                           \
                std::memcpy(to_values + at + slot * size, values + (j * tokens + t) * size, sizeof(T) * size);               \
            }                                                                                                                \
    }

LAMINA_DECODE(float32, float)
LAMINA_DECODE(bfloat16, bf16)
