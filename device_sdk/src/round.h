/* SPDX-License-Identifier: Apache-2.0
 *
 * The learning part of one participation: encode every sample, rank, select, train the head, in bounded pieces. It
 * knows nothing of messages. The arena's region `samples` is used twice:
 *
 *     while encoding, ranking      loss f32[n]           norm f32[n]          rank u16[n]     norm rank u16[n]
 *     from the selection on        partner's epochs u32[n]   own epochs u32[n]    label u16[n]    -
 *
 * Bit e of an epochs word says that the sample is in that group in epoch e: what selects is computed once.
 */
#ifndef FEDMOTE_ROUND_H
#define FEDMOTE_ROUND_H

#include "arena.h"
#include "cache.h"
#include "encoder.h"
#include "head.h"
#include "select.h"
#include "transfer.h"

#define FEDMOTE_NO_SAMPLE UINT32_MAX

/* A plan message, with the defaults of its optional fields. What an update depends on comes first and has no gap, up to
 * training.is_bias_only: a journal keeps and compares these bytes. */
struct fedmote_plan {
    uint8_t run[8];
    uint8_t model_hash[32];
    uint32_t round, version, head_size, head_crc;
    uint32_t seed, epochs, batch, gain_milli, gamma_order;
    float alpha, beta, gamma;
    struct fedmote_training training;
    uint32_t attempt, max_send, model_handle, model_size, head_handle;
    uint32_t serial;                             /* of a signed package; 0: it is not signed */
    uint32_t difference_handle, difference_size; /* 0 bytes: none is offered */
    bool has_head, is_sending_samples;
};

/* What a round has found and made, as in the report. */
struct fedmote_results {
    uint32_t num_examples, discarded, trained, sent;
    uint32_t last_trained; /* samples of the last epoch */
    float loss_sum, last_loss_sum;
    uint32_t samples_crc, update_crc;
};

/* Phases in their order; each is done in pieces. */
enum fedmote_phase_of_work {
    FEDMOTE_WORK_ENCODE, /* embedding, loss and norm of every sample */
    FEDMOTE_WORK_RANK,   /* both ranks: two pieces, the ones without a bound of their own */
    FEDMOTE_WORK_GROUP,  /* epochs words of every sample */
    FEDMOTE_WORK_LIMIT,  /* keeps only the max_send highest ranks of the partner's group */
    FEDMOTE_WORK_LABEL,  /* labels of the selected samples, checksum of the samples blob */
    FEDMOTE_WORK_TRAIN,
    FEDMOTE_WORK_SEAL, /* checksum of the update, and whether it is finite */
    FEDMOTE_WORK_DONE,
};

struct fedmote_round {
    const struct fedmote_port *port;
    uint8_t *arena;
    struct fedmote_plan plan;
    struct fedmote_package package;
    struct fedmote_layout layout;
    struct fedmote_encoder encoder;
    struct fedmote_head head;
    struct fedmote_selector selector;

    uint8_t work;          /* enum fedmote_phase_of_work */
    bool is_cache_erased;  /* the port's cache region: at most once per round */
    bool is_cache_closed;  /* it failed: nothing more is kept there */
    uint32_t kept;         /* samples [0, kept) need not be encoded again: layout.cached and those of the region */
    uint32_t sample_count; /* n */
    uint32_t cursor;       /* next sample, rank pass or float of the phase */
    uint32_t encoding;     /* sample whose inference is under way, FEDMOTE_NO_SAMPLE: none */
    uint32_t in_input;     /* sample that lies in the encoder's input unspoilt, FEDMOTE_NO_SAMPLE: none */
    uint32_t input_label;  /* its label */
    uint32_t epoch, epoch_left, batch_size, batch_left;
    uint32_t batch_cursor; /* where the mini-batch began: it may be gone through again */
    uint32_t low, high;    /* search for the lowest rank that goes to the partner */
    uint32_t crc;          /* of the blob under way */

    struct fedmote_results results;
    const uint8_t *recorded; /* the update as a journal has it; NULL: it is made from the head */

    uint32_t serve_record, serve_sample; /* where the samples blob was last read, to go on from there */
};

/* Lays out the arena for round->package and sample_count samples and computes nothing else.
 * Errors: FEDMOTE_ERR_ARENA, FEDMOTE_ERR_NO_SAMPLES. */
FEDMOTE_MUST_CHECK int32_t fedmote_round_layout(struct fedmote_round *round, const struct fedmote_port *port,
                                                uint8_t *arena, uint32_t arena_bytes);

/* Where a newer head goes before fedmote_round_begin(): f32[head_parameters]. */
float *fedmote_round_head_base(const struct fedmote_round *round);

/* Begins with the package's head, or with the one that lies at head_base (`has_newer_head`); device_id_crc names
 * the device in the draws. Error: FEDMOTE_ERR_UPDATE_NOT_FINITE for a head with a NaN or an infinity. */
FEDMOTE_MUST_CHECK int32_t fedmote_round_begin(struct fedmote_round *round, bool has_newer_head,
                                               uint32_t device_id_crc);

/* Does one piece. Returns FEDMOTE_BUSY; FEDMOTE_OK when round->work went on to its next phase; or
 * FEDMOTE_ERR_SAMPLE_IO, FEDMOTE_ERR_UPDATE_NOT_FINITE. */
FEDMOTE_MUST_CHECK int32_t fedmote_round_step(struct fedmote_round *round);

/* Bytes of the arena that the round uses, with the embeddings that are cached. */
uint32_t fedmote_round_arena_used(const struct fedmote_round *round);

/* Reads a sample into the encoder's input, at the price of an inference that is under way. Error:
 * FEDMOTE_ERR_SAMPLE_IO. */
FEDMOTE_MUST_CHECK int32_t fedmote_round_load(struct fedmote_round *round, uint32_t sample);

/* Epochs words of all samples, and their labels; valid from the phases that fill them on. */
uint32_t *fedmote_round_partner_epochs(const struct fedmote_round *round);
uint32_t *fedmote_round_own_epochs(const struct fedmote_round *round);
uint16_t *fedmote_round_labels(const struct fedmote_round *round);

#endif
