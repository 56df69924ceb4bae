/* SPDX-License-Identifier: Apache-2.0 */
#include "round.h"

#include <math.h>
#include <string.h>

#include "samples.h"
#include "update.h"

enum {
    MACS_PER_DRAW = 128,   /* what one group costs, three powers, in multiply-accumulates of a core with an FPU */
    FLOATS_PER_PIECE = 64, /* of the update's checksum */
};

/* ---- regions of the arena -----------------------------------------------------------------------------------------
 */

/* The arena is 16-aligned, and so are the offsets of the layout. */
static void *region(const struct fedmote_round *round, uint32_t offset) { return round->arena + offset; }

static float *losses(const struct fedmote_round *round) { return region(round, round->layout.samples); }

static float *norms(const struct fedmote_round *round) {
    return region(round, round->layout.samples + 4 * round->sample_count);
}

static uint16_t *ranks(const struct fedmote_round *round) {
    return region(round, round->layout.samples + 8 * round->sample_count);
}

static uint16_t *norm_ranks(const struct fedmote_round *round) {
    return region(round, round->layout.samples + 10 * round->sample_count);
}

uint32_t *fedmote_round_partner_epochs(const struct fedmote_round *round) {
    return region(round, round->layout.samples);
}

uint32_t *fedmote_round_own_epochs(const struct fedmote_round *round) {
    return region(round, round->layout.samples + 4 * round->sample_count);
}

uint16_t *fedmote_round_labels(const struct fedmote_round *round) { return ranks(round); }

float *fedmote_round_head_base(const struct fedmote_round *round) { return region(round, round->layout.head_base); }

static int8_t *cached(const struct fedmote_round *round, uint32_t sample) {
    return (int8_t *)round->arena + round->layout.cache + (size_t)sample * round->package.feature_count;
}

uint32_t fedmote_round_arena_used(const struct fedmote_round *round) {
    return round->layout.cache + round->layout.cached * round->package.feature_count;
}

/* ---- beginning ----------------------------------------------------------------------------------------------------
 */

int32_t fedmote_round_layout(struct fedmote_round *round, const struct fedmote_port *port, uint8_t *arena,
                             uint32_t arena_bytes) {
    uint32_t count = port->sample_count(port->context);
    round->port = port;
    round->arena = arena;
    round->head.arithmetic = port->arithmetic;
    round->sample_count = count < FEDMOTE_SAMPLES_MAX ? count : FEDMOTE_SAMPLES_MAX;
    return fedmote_layout_compute(&round->layout, &round->package, port->arithmetic, round->sample_count, arena_bytes);
}

static void begin_phase(struct fedmote_round *round, uint8_t work) {
    round->work = work;
    round->cursor = 0;
}

static void begin_selector(struct fedmote_round *round, uint32_t device_id_crc) {
    const struct fedmote_plan *plan = &round->plan;
    round->selector = (struct fedmote_selector){
        .seed = plan->seed,
        .device = device_id_crc,
        .alpha = plan->alpha,
        .beta = plan->beta,
        .gamma = plan->gamma,
        .gamma_order = plan->gamma_order,
        .sample_count = round->sample_count,
        .limit = round->sample_count * plan->gain_milli / 1000U, /* at most 16383 and 1000 */
        .rank = ranks(round),
        .norm_rank = norm_ranks(round),
    };
}

int32_t fedmote_round_begin(struct fedmote_round *round, bool has_newer_head, uint32_t device_id_crc) {
    const struct fedmote_package *package = &round->package;
    uint32_t bytes = package->head_parameters * (uint32_t)sizeof(float);
    float *head_base = fedmote_round_head_base(round);
    if (!has_newer_head) {
        memcpy(head_base, package->head, bytes);
    }
    for (uint32_t i = 0; i < package->head_parameters; i++) {
        if (!isfinite(head_base[i])) {
            return FEDMOTE_ERR_UPDATE_NOT_FINITE;
        }
    }
    struct fedmote_head *head = &round->head;
    head->shape = package->head_shape;
    head->training = round->plan.training;
    head->training.seed = round->plan.seed ^ device_id_crc;
    head->parameters = region(round, round->layout.head);
    head->velocity = region(round, round->layout.velocity);
    head->scratch = region(round, round->layout.scratch);
    head->arithmetic->begin(head, head_base);
    fedmote_encoder_init(&round->encoder, package, region(round, round->layout.encoder));
    begin_selector(round, device_id_crc);
    round->encoding = round->in_input = FEDMOTE_NO_SAMPLE;
    round->results = (struct fedmote_results){0};
    round->recorded = NULL;
    round->kept = round->layout.cached;
    round->is_cache_erased = round->is_cache_closed = false;
    begin_phase(round, FEDMOTE_WORK_ENCODE);
    return FEDMOTE_OK;
}

/* ---- encoding -----------------------------------------------------------------------------------------------------
 */

int32_t fedmote_round_load(struct fedmote_round *round, uint32_t sample) {
    if (round->in_input == sample) {
        return FEDMOTE_OK;
    }
    const struct fedmote_port *port = round->port;
    round->encoding = round->in_input = FEDMOTE_NO_SAMPLE;
    fedmote_encoder_init(&round->encoder, &round->package, round->encoder.memory);
    uint32_t label = UINT32_MAX;
    int32_t status = port->sample_read(port->context, sample, fedmote_encoder_input(&round->encoder),
                                       round->package.input_count, &label);
    if (status < 0 || label >= round->package.head_shape.outputs) {
        return FEDMOTE_ERR_SAMPLE_IO;
    }
    round->in_input = sample;
    round->input_label = label;
    return FEDMOTE_OK;
}

/* One piece of the inference of `sample`. Returns FEDMOTE_OK when its features lie at fedmote_encoder_features(). */
static int32_t encode_piece(struct fedmote_round *round, uint32_t sample) {
    if (round->encoding != sample) {
        int32_t status = fedmote_round_load(round, sample);
        if (status != FEDMOTE_OK) {
            return status;
        }
        round->encoding = sample;
    }
    round->in_input = FEDMOTE_NO_SAMPLE; /* the encoder may reuse the memory of its input */
    int32_t status = fedmote_encoder_run(&round->encoder, FEDMOTE_MACS_PER_STEP);
    if (status == FEDMOTE_OK) {
        round->encoding = FEDMOTE_NO_SAMPLE;
    }
    return status;
}

static int32_t work_encode(struct fedmote_round *round) {
    const struct fedmote_cache *cache = round->port->cache;
    if (cache && cache->keep(round)) {
        return FEDMOTE_BUSY;
    }
    if (round->cursor == round->sample_count) {
        begin_phase(round, FEDMOTE_WORK_RANK);
        return FEDMOTE_OK;
    }
    int32_t status = encode_piece(round, round->cursor);
    if (status != FEDMOTE_OK) {
        return status;
    }
    const int8_t *features = fedmote_encoder_features(&round->encoder);
    if (round->cursor < round->layout.cached) {
        memcpy(cached(round, round->cursor), features, round->package.feature_count);
    }
    float *norm = &norms(round)[round->cursor];
    float loss = round->head.arithmetic->loss(&round->head, features, round->input_label, norm);
    losses(round)[round->cursor] = loss;
    round->results.loss_sum += loss;
    round->cursor++;
    return FEDMOTE_BUSY;
}

/* ---- selection ----------------------------------------------------------------------------------------------------
 */

static int32_t work_rank(struct fedmote_round *round) {
    if (round->cursor++ == 0) {
        fedmote_rank(losses(round), round->sample_count, ranks(round));
        return FEDMOTE_BUSY;
    }
    fedmote_rank(norms(round), round->sample_count, norm_ranks(round));
    begin_phase(round, FEDMOTE_WORK_GROUP);
    return FEDMOTE_OK;
}

/* Groups of one sample in all epochs. Counts what the report says; a sample of the partner's group that the policy
 * keeps here belongs to a group and is therefore not discarded. */
static void group_sample(struct fedmote_round *round, uint32_t sample) {
    uint32_t own = 0;
    uint32_t partner = 0;
    for (uint32_t epoch = 0; epoch < round->plan.epochs; epoch++) {
        enum fedmote_group group = fedmote_select(&round->selector, sample, epoch);
        own |= (group == FEDMOTE_GROUP_DEVICE ? 1U : 0U) << epoch;
        partner |= (group == FEDMOTE_GROUP_PARTNER ? 1U : 0U) << epoch;
    }
    round->results.num_examples += own & 1;
    round->results.discarded += own == 0 && partner == 0;
    if (!round->plan.is_sending_samples) {
        partner = 0;
    }
    round->results.sent += partner != 0;
    fedmote_round_own_epochs(round)[sample] = own;
    fedmote_round_partner_epochs(round)[sample] = partner;
}

static int32_t work_group(struct fedmote_round *round) {
    uint32_t cost = round->plan.epochs * MACS_PER_DRAW;
    for (uint32_t macs = 0; round->cursor < round->sample_count; round->cursor++, macs += cost) {
        if (macs > 0 && macs + cost > FEDMOTE_MACS_PER_STEP) {
            return FEDMOTE_BUSY;
        }
        group_sample(round, round->cursor);
    }
    begin_phase(round, FEDMOTE_WORK_LIMIT);
    const uint32_t most = fedmote_samples_most(round);
    round->plan.max_send = round->plan.max_send < most ? round->plan.max_send : most;
    round->low = 0;
    round->high = round->sample_count;
    return FEDMOTE_OK;
}

/* How many samples of the partner's group have a rank above `rank`. */
static uint32_t count_above(const struct fedmote_round *round, uint32_t rank) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < round->sample_count; i++) {
        count += fedmote_round_partner_epochs(round)[i] != 0 && ranks(round)[i] > rank;
    }
    return count;
}

/* Keeps the samples above rank `high`, and of those with that rank the first ones, up to max_send. */
static void drop_below(struct fedmote_round *round) {
    uint32_t *partner = fedmote_round_partner_epochs(round);
    uint32_t left = round->plan.max_send - count_above(round, round->high);
    for (uint32_t i = 0; i < round->sample_count; i++) {
        uint32_t rank = ranks(round)[i];
        bool is_at_bound = partner[i] != 0 && rank == round->high;
        if (rank < round->high || (is_at_bound && left == 0)) {
            partner[i] = 0;
        } else if (is_at_bound) {
            left--;
        }
    }
    round->results.sent = round->plan.max_send;
}

/* Bisection for the lowest rank above which at most max_send samples lie; each piece is one pass over n words. */
static int32_t work_limit(struct fedmote_round *round) {
    if (round->results.sent > round->plan.max_send) {
        if (round->low < round->high) {
            uint32_t middle = (round->low + round->high) / 2;
            if (count_above(round, middle) <= round->plan.max_send) {
                round->high = middle;
            } else {
                round->low = middle + 1;
            }
            return FEDMOTE_BUSY;
        }
        drop_below(round);
    }
    begin_phase(round, FEDMOTE_WORK_LABEL);
    round->crc = fedmote_samples_begin(round);
    return FEDMOTE_OK;
}

static int32_t work_label(struct fedmote_round *round) {
    uint32_t sample = round->cursor;
    bool is_sent = fedmote_round_partner_epochs(round)[sample] != 0;
    if (is_sent || fedmote_round_own_epochs(round)[sample] != 0) {
        int32_t status = fedmote_round_load(round, sample);
        if (status != FEDMOTE_OK) {
            return status;
        }
        fedmote_round_labels(round)[sample] = (uint16_t)round->input_label;
        if (is_sent) {
            round->crc = fedmote_samples_extend(round, sample, round->crc);
        }
    }
    if (++round->cursor < round->sample_count) {
        return FEDMOTE_BUSY;
    }
    round->results.samples_crc = round->crc;
    round->epoch = 0;
    round->epoch_left = round->batch_left = 0;
    begin_phase(round, FEDMOTE_WORK_TRAIN);
    return FEDMOTE_OK;
}

/* ---- training -----------------------------------------------------------------------------------------------------
 */

static bool is_own(const struct fedmote_round *round, uint32_t sample) {
    return (fedmote_round_own_epochs(round)[sample] >> round->epoch & 1) != 0;
}

/* Finds the next epoch that has samples; false where there is none. */
static bool begin_epoch(struct fedmote_round *round) {
    for (; round->epoch < round->plan.epochs; round->epoch++) {
        for (uint32_t i = 0; i < round->sample_count; i++) {
            round->epoch_left += is_own(round, i);
        }
        if (round->epoch_left > 0) {
            round->cursor = 0;
            round->results.last_trained = 0;
            round->results.last_loss_sum = 0.0f;
            return true;
        }
    }
    return false;
}

/* The features of the sample at the cursor: in the arena, in the port's cache region, or encoded again piece by piece.
 */
static int32_t find_features(struct fedmote_round *round, const int8_t **features) {
    if (round->cursor < round->layout.cached) {
        *features = cached(round, round->cursor);
        return FEDMOTE_OK;
    }
    if (round->cursor < round->kept) {
        *features = round->port->cache->find(round, round->cursor);
        return FEDMOTE_OK;
    }
    *features = fedmote_encoder_features(&round->encoder);
    return encode_piece(round, round->cursor);
}

/* The mini-batch is over, or begins once more: the head says which. */
static void end_batch(struct fedmote_round *round) {
    if (round->head.arithmetic->batch_end(&round->head)) {
        round->cursor = round->batch_cursor;
        round->batch_left = round->batch_size;
        round->epoch_left += round->batch_size;
    } else if (round->epoch_left == 0) {
        round->epoch++;
    }
}

/* One sample's gradient. Returns FEDMOTE_OK when it is in, or FEDMOTE_BUSY or an error of its encoding. */
static int32_t train_sample(struct fedmote_round *round) {
    while (!is_own(round, round->cursor)) { /* epoch_left > 0: there is one */
        round->cursor++;
    }
    const int8_t *features = NULL;
    int32_t status = find_features(round, &features);
    if (status != FEDMOTE_OK) {
        return status;
    }
    uint32_t label = fedmote_round_labels(round)[round->cursor];
    const float loss = round->head.arithmetic->batch_add(&round->head, features, label);
    round->in_input = FEDMOTE_NO_SAMPLE; /* the head's scratch memory is the encoder's */
    if (round->head.is_counting) {
        round->results.last_loss_sum += loss;
        round->results.last_trained++;
        round->results.trained++;
    }
    round->cursor++;
    round->epoch_left--;
    round->batch_left--;
    return FEDMOTE_OK;
}

/* One piece: the beginning of a mini-batch, as many samples as the budget holds, or its end. */
static int32_t work_train(struct fedmote_round *round) {
    if (round->batch_left == 0) {
        if (round->epoch_left == 0 && !begin_epoch(round)) {
            begin_phase(round, FEDMOTE_WORK_SEAL);
            round->crc = fedmote_update_begin(round);
            return FEDMOTE_OK;
        }
        uint32_t batch = round->plan.batch;
        round->batch_size = round->batch_left = batch < round->epoch_left ? batch : round->epoch_left;
        round->batch_cursor = round->cursor;
        round->head.arithmetic->batch_begin(&round->head, round->batch_size);
        return FEDMOTE_BUSY;
    }
    uint32_t cost = 2 * round->package.head_parameters;
    uint32_t macs = 0;
    do {
        int32_t status = train_sample(round);
        if (status != FEDMOTE_OK) {
            return status;
        }
        bool was_kept = round->cursor <= round->kept; /* the cursor is one further now */
        macs += was_kept ? cost : FEDMOTE_MACS_PER_STEP;
    } while (round->batch_left > 0 && macs + cost <= FEDMOTE_MACS_PER_STEP);
    if (round->batch_left == 0) {
        end_batch(round);
    }
    return FEDMOTE_BUSY;
}

static int32_t work_seal(struct fedmote_round *round) {
    uint32_t left = round->package.head_parameters - round->cursor;
    uint32_t count = left < FLOATS_PER_PIECE ? left : FLOATS_PER_PIECE;
    int32_t status = fedmote_update_extend(round, round->cursor, count, &round->crc);
    if (status != FEDMOTE_OK) {
        return status;
    }
    round->cursor += count;
    if (round->cursor < round->package.head_parameters) {
        return FEDMOTE_BUSY;
    }
    round->results.update_crc = round->crc;
    round->work = FEDMOTE_WORK_DONE;
    return FEDMOTE_OK;
}

int32_t fedmote_round_step(struct fedmote_round *round) {
    static int32_t (*const works[])(struct fedmote_round *) = {
        work_encode, work_rank, work_group, work_limit, work_label, work_train, work_seal,
    };
    return round->work < FEDMOTE_WORK_DONE ? works[round->work](round) : FEDMOTE_OK;
}
