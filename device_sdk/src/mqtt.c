/* SPDX-License-Identifier: Apache-2.0
 *
 * The stream may be a modem, a socket or a UART that somebody joined to a broker: it has no call that connects it, and
 * its loss may never be told. So the client connects by sending CONNECT, believes only an answer within CONNECT_MS, and
 * in the session lets PINGREQ out every half of the keep-alive: where no packet came in between, the stream is lost,
 * whatever the port says, and CONNECT is sent anew after a back-off. All sessions are clean, and QoS 1 packets are not
 * repeated here: the client repeats what matters until the peer itself has answered.
 *
 * Packets come from the network: any length, type or flag that MQTT 3.1.1 does not allow ends the connection; a packet
 * that is only too long for the buffer is read past and counted.
 */
#include "mqtt.h"

#include <string.h>

#include "link.h"
#include "wire.h"

enum packet_type {
    CONNECT = 1,
    CONNACK = 2,
    PUBLISH = 3,
    PUBACK = 4,
    SUBSCRIBE = 8,
    SUBACK = 9,
    PINGREQ = 12,
    PINGRESP = 13
};

enum {
    FLAG_RETAIN = 1,
    FLAG_QOS_1 = 2,
    FLAG_QOS_MASK = 6,
    RESERVED_FLAGS = 2, /* of SUBSCRIBE */
    CLEAN_SESSION = 0x02,
    WILL_QOS_1_RETAINED = 0x04 | 0x08 | 0x20,
    HAS_PASSWORD = 0x40,
    HAS_USERNAME = 0x80,
    SUBSCRIBE_ID = 1,
    FILTERS = 2,
    CONNECT_MS = 5000,
    BACKOFF_MIN_MS = 1000,
    BACKOFF_MAX_MS = 60000,
    DEFAULT_KEEP_ALIVE_S = 30,
    STATE_BODY = 16 /* bytes of a state message, at most */
};

/* ---- text and fields into the transmit buffer ---------------------------------------------------------------------
 */

/* Appends into bytes[0, capacity). What does not fit is only counted, so that one check at the end is enough. */
struct writer {
    uint8_t *bytes;
    uint32_t capacity;
    uint32_t size;
};

static void append(struct writer *writer, const void *bytes, uint32_t size) {
    if (writer->size + size <= writer->capacity) {
        memcpy(writer->bytes + writer->size, bytes, size);
    }
    writer->size += size;
}

static void append_byte(struct writer *writer, uint32_t byte) {
    uint8_t value = (uint8_t)byte;
    append(writer, &value, 1);
}

static void append_u16(struct writer *writer, uint32_t value) {
    append_byte(writer, value >> 8);
    append_byte(writer, value & 0xFF);
}

static void append_text(struct writer *writer, const char *text) { append(writer, text, (uint32_t)strlen(text)); }

/* A string of MQTT: two bytes of length, then the text. */
static void append_string(struct writer *writer, const char *text) {
    append_u16(writer, (uint32_t)strlen(text));
    append_text(writer, text);
}

/* `fedmote/1/<site>/<id>/<tail><kind>`, with its length in front. */
static void append_topic(struct writer *writer, const struct fedmote_identity *identity, const char *tail,
                         const char *kind) {
    struct writer at = *writer;
    append_u16(writer, 0);
    append_text(writer, "fedmote/");
    append_byte(writer, '0' + FEDMOTE_LIMIT_PROTOCOL);
    append_byte(writer, '/');
    append_text(writer, identity->site);
    append_byte(writer, '/');
    append_text(writer, identity->id);
    append_text(writer, tail);
    append_text(writer, kind);
    append_u16(&at, writer->size - at.size - 2);
}

/* Fixed header of a packet: type, flags and the remaining length in groups of seven bits. Returns its size, 5 at most.
 */
static uint32_t put_header(uint8_t *out, uint32_t type, uint32_t flags, uint32_t length) {
    uint32_t size = 0;
    out[size++] = (uint8_t)(type << 4 | flags);
    do {
        out[size++] = (uint8_t)((length & 0x7F) | (length > 0x7F ? 0x80 : 0));
        length >>= 7;
    } while (length > 0);
    return size;
}

/* Sends what was appended at transmit + FEDMOTE_BODY_OFFSET or behind `writer->bytes`, with the fixed header in front.
 */
static void send_packet(struct fedmote_line *line, uint8_t *first, uint32_t size, uint32_t type, uint32_t flags) {
    uint8_t header[5];
    uint32_t header_size = put_header(header, type, flags, size);
    memcpy(first - header_size, header, header_size);
    line->tx_begin = (uint32_t)(first - header_size - line->transmit);
    line->tx_end = line->tx_begin + header_size + size;
}

/* ---- leaving and entering sessions --------------------------------------------------------------------------------
 */

static uint32_t keep_alive_s(const struct fedmote_line *line) {
    return line->identity->keep_alive_s > 0 ? line->identity->keep_alive_s : DEFAULT_KEEP_ALIVE_S;
}

static void forget_packet(struct fedmote_mqtt *mqtt) {
    mqtt->header = 0;
    mqtt->length_bytes = 0;
    mqtt->is_length_known = false;
    mqtt->length = 0;
    mqtt->received = 0;
}

/* Ends the session, for `status`, and connects anew after the back-off. */
static void lose(struct fedmote_line *line, int32_t status, uint32_t now) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    fedmote_line_lose(line, status);
    forget_packet(mqtt);
    mqtt->small_size = mqtt->small_sent = 0;
    mqtt->is_ping_owed = false;
    mqtt->state = FEDMOTE_MQTT_WAIT;
    mqtt->deadline = now + fedmote_jitter(line->port, mqtt->backoff_ms);
    mqtt->backoff_ms = mqtt->backoff_ms < BACKOFF_MAX_MS / 2 ? mqtt->backoff_ms * 2 : BACKOFF_MAX_MS;
}

/* The body of `up/state`. */
static uint32_t compose_state(const struct fedmote_line *line, uint8_t *body, uint32_t is_online) {
    struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_STATE);
    fedmote_message_number(&message, FEDMOTE_FIELD_BOOT, line->boot);
    fedmote_message_number(&message, FEDMOTE_FIELD_IS_ONLINE, is_online);
    int32_t size = fedmote_encode(&message, body, STATE_BODY);
    return size > 0 ? (uint32_t)size : 0;
}

/* Where packets that are no messages are composed: five bytes are kept for the fixed header. */
static struct writer packet_writer(struct fedmote_line *line) {
    struct writer writer = {line->transmit + 5, line->capacity - 5, 0};
    return writer;
}

static void send_connect(struct fedmote_line *line) {
    const struct fedmote_identity *identity = line->identity;
    struct writer writer = packet_writer(line);
    uint32_t flags = CLEAN_SESSION | WILL_QOS_1_RETAINED | HAS_USERNAME | (identity->password ? HAS_PASSWORD : 0);
    append_string(&writer, "MQTT");
    append_byte(&writer, 4); /* protocol level of 3.1.1 */
    append_byte(&writer, flags);
    append_u16(&writer, keep_alive_s(line));
    append_string(&writer, identity->id);
    append_topic(&writer, identity, "/up/", fedmote_kind_names[FEDMOTE_KIND_STATE]);
    uint8_t will[STATE_BODY];
    uint32_t will_size = compose_state(line, will, 0);
    append_u16(&writer, will_size);
    append(&writer, will, will_size);
    append_string(&writer, identity->username ? identity->username : identity->id);
    if (identity->password) {
        append_string(&writer, identity->password);
    }
    send_packet(line, writer.bytes, writer.size, CONNECT,
                0); /* 280 bytes at most; fedmote_init() has the buffers checked */
}

static void send_subscribe(struct fedmote_line *line) {
    struct writer writer = packet_writer(line);
    append_u16(&writer, SUBSCRIBE_ID);
    append_topic(&writer, line->identity, "/dn/", "#");
    append_byte(&writer, 1);
    append_topic(&writer, line->identity, "/cell/dn/", "#");
    append_byte(&writer, 1);
    send_packet(line, writer.bytes, writer.size, SUBSCRIBE, RESERVED_FLAGS);
}

/* Sends CONNECT, after throwing away what an earlier connection may have left in the port's buffer. */
static void begin_session(struct fedmote_line *line, uint32_t now) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    int32_t stale = fedmote_line_read(line, line->receive, line->capacity);
    if (stale < 0) {
        lose(line, FEDMOTE_ERR_LINK, now);
        return;
    }
    if (stale > 0) {
        return; /* more may follow: the next poll reads on */
    }
    forget_packet(mqtt);
    send_connect(line);
    mqtt->state = FEDMOTE_MQTT_CONNECT;
    mqtt->deadline = now + CONNECT_MS;
}

/* ---- publishing ---------------------------------------------------------------------------------------------------
 */

static uint16_t next_packet_id(struct fedmote_mqtt *mqtt) {
    mqtt->packet_id = (uint16_t)(mqtt->packet_id == 0xFFFF ? 1 : mqtt->packet_id + 1);
    return mqtt->packet_id;
}

static void publish(struct fedmote_line *line, const char *tail, uint8_t kind, uint32_t size, uint32_t flags) {
    uint8_t header[FEDMOTE_BODY_OFFSET];
    struct writer writer = {header, sizeof header, 0};
    append_topic(&writer, line->identity, tail, fedmote_kind_names[kind]);
    if (flags & FLAG_QOS_1) {
        append_u16(&writer, next_packet_id(&line->as.mqtt));
    }
    uint8_t *first = line->transmit + FEDMOTE_BODY_OFFSET - writer.size;
    memcpy(first, header, writer.size);
    send_packet(line, first, writer.size + size, PUBLISH, flags);
}

static void mqtt_send(struct fedmote_line *line, uint8_t channel, uint8_t kind, uint32_t size) {
    bool is_bulk = kind == FEDMOTE_KIND_GET || kind == FEDMOTE_KIND_DATA; /* the transfer has its own acknowledgement */
    publish(line, channel == FEDMOTE_CHANNEL_CELL ? "/cell/up/" : "/up/", kind, size, is_bulk ? 0 : FLAG_QOS_1);
    line->frames_sent++;
}

static void begin_service(struct fedmote_line *line, uint32_t now) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    uint32_t size = compose_state(line, line->transmit + FEDMOTE_BODY_OFFSET, 1);
    publish(line, "/up/", FEDMOTE_KIND_STATE, size, FLAG_QOS_1 | FLAG_RETAIN);
    mqtt->state = FEDMOTE_MQTT_UP;
    mqtt->is_alive = true;
    mqtt->deadline = now + keep_alive_s(line) * 500;
    mqtt->backoff_ms = BACKOFF_MIN_MS;
    line->is_up = true;
}

/* ---- receiving ----------------------------------------------------------------------------------------------------
 */

/* Whether `text` begins at bytes[*at]; moves behind it. */
static bool is_next(const uint8_t *bytes, uint32_t size, uint32_t *at, const char *text) {
    uint32_t length = (uint32_t)strlen(text);
    if (size - *at < length || memcmp(bytes + *at, text, length) != 0) {
        return false;
    }
    *at += length;
    return true;
}

/* Finds channel and kind of a topic. Returns false where it is not addressed to this device; the broker's fault. */
static bool parse_topic(const struct fedmote_line *line, const uint8_t *topic, uint32_t size,
                        struct fedmote_frame *frame) {
    static const char version[] = {'0' + FEDMOTE_LIMIT_PROTOCOL, '/', 0};
    uint32_t at = 0;
    bool is_ours = is_next(topic, size, &at, "fedmote/") && is_next(topic, size, &at, version) &&
                   is_next(topic, size, &at, line->identity->site) && is_next(topic, size, &at, "/") &&
                   is_next(topic, size, &at, line->identity->id) && is_next(topic, size, &at, "/");
    if (!is_ours) {
        return false;
    }
    frame->channel = is_next(topic, size, &at, "cell/") ? FEDMOTE_CHANNEL_CELL : FEDMOTE_CHANNEL_COORDINATOR;
    if (!is_next(topic, size, &at, "dn/")) {
        return false;
    }
    frame->kind = 0;
    for (uint8_t kind = 1; kind < FEDMOTE_KINDS_END; kind++) {
        uint32_t end = at;
        if (is_next(topic, size, &end, fedmote_kind_names[kind]) && end == size) {
            frame->kind = kind;
        }
    }
    return true;
}

/* A complete PUBLISH: queues PUBACK, finds the message. Returns FEDMOTE_LINK_FRAME, FEDMOTE_OK for a dropped one, or
 * the reason to hang up. */
static int32_t take_publish(struct fedmote_line *line, struct fedmote_frame *frame) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    const uint8_t *packet = line->receive;
    uint32_t qos = (uint32_t)(mqtt->header & FLAG_QOS_MASK) >> 1;
    uint32_t id_size = qos == 0 ? 0 : 2;
    if (qos > 1 || mqtt->length < 2 + id_size) {
        return FEDMOTE_ERR_LINK;
    }
    uint32_t topic_size = (uint32_t)packet[0] << 8 | packet[1];
    uint32_t body_at = 2 + topic_size + id_size;
    if (body_at > mqtt->length) {
        return FEDMOTE_ERR_LINK;
    }
    if (body_at > line->capacity) { /* too long even for its topic: nothing of ours, and its id is not known */
        fedmote_line_drop(line, FEDMOTE_ERR_BODY_TOO_LARGE);
        return FEDMOTE_OK;
    }
    if (qos == 1) {
        const uint8_t *id = packet + 2 + topic_size;
        if (id[0] == 0 && id[1] == 0) {
            return FEDMOTE_ERR_LINK;
        }
        mqtt->small_size = (uint8_t)put_header(mqtt->small, PUBACK, 0, 2);
        mqtt->small[mqtt->small_size++] = id[0];
        mqtt->small[mqtt->small_size++] = id[1];
        mqtt->small_sent = 0;
    }
    if (mqtt->length > line->capacity || mqtt->length - body_at > FEDMOTE_BODY_MAX) {
        fedmote_line_drop(line, FEDMOTE_ERR_BODY_TOO_LARGE);
        return FEDMOTE_OK;
    }
    if (!parse_topic(line, packet + 2, topic_size, frame)) {
        fedmote_line_drop(line, FEDMOTE_ERR_FRAME_CHANNEL);
        return FEDMOTE_OK;
    }
    frame->body = packet + body_at;
    frame->size = mqtt->length - body_at;
    line->frames_received++;
    return FEDMOTE_LINK_FRAME;
}

static int32_t take_connack(struct fedmote_line *line, uint32_t now) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    if (mqtt->state != FEDMOTE_MQTT_CONNECT || mqtt->length != 2 || line->receive[0] > 1) {
        return FEDMOTE_ERR_LINK;
    }
    if (line->receive[1] != 0) {
        return FEDMOTE_ERR_LINK_REFUSED;
    }
    if (line->tx_begin != line->tx_end) { /* an answer to a CONNECT that is not out yet */
        return FEDMOTE_ERR_LINK;
    }
    send_subscribe(line);
    mqtt->state = FEDMOTE_MQTT_SUBSCRIBE;
    mqtt->deadline = now + CONNECT_MS;
    return FEDMOTE_OK;
}

static int32_t take_suback(struct fedmote_line *line, uint32_t now) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    const uint8_t *packet = line->receive;
    bool is_answer = mqtt->state == FEDMOTE_MQTT_SUBSCRIBE && line->tx_begin == line->tx_end &&
                     mqtt->length == 2 + FILTERS && packet[0] == 0 && packet[1] == SUBSCRIBE_ID;
    if (!is_answer) {
        return FEDMOTE_ERR_LINK;
    }
    if (packet[2] > 1 || packet[3] > 1) { /* 0x80: refused; more than QoS 1 was not asked for */
        return FEDMOTE_ERR_LINK_REFUSED;
    }
    begin_service(line, now);
    return FEDMOTE_OK;
}

/* A complete packet. Returns FEDMOTE_LINK_FRAME, FEDMOTE_OK, or the reason to hang up. */
static int32_t take_packet(struct fedmote_line *line, uint32_t now, struct fedmote_frame *frame) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    uint32_t type = mqtt->header >> 4;
    bool is_up = mqtt->state == FEDMOTE_MQTT_UP;
    mqtt->is_alive = true;
    if (type == PUBLISH) {
        return mqtt->state >= FEDMOTE_MQTT_SUBSCRIBE ? take_publish(line, frame) : FEDMOTE_ERR_LINK;
    }
    if ((mqtt->header & 0x0F) != 0) {
        return FEDMOTE_ERR_LINK;
    }
    if (type == CONNACK) {
        return take_connack(line, now);
    }
    if (type == SUBACK) {
        return take_suback(line, now);
    }
    bool is_puback = type == PUBACK && mqtt->length == 2;
    bool is_pingresp = type == PINGRESP && mqtt->length == 0;
    return is_up && (is_puback || is_pingresp) ? FEDMOTE_OK : FEDMOTE_ERR_LINK;
}

/* Reads the fixed header, byte by byte. Returns FEDMOTE_OK when nothing more is there now, or an error. */
static int32_t read_header(struct fedmote_line *line) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    while (!mqtt->is_length_known) {
        uint8_t byte = 0;
        int32_t moved = fedmote_line_read(line, &byte, 1);
        if (moved <= 0) {
            return moved;
        }
        if (mqtt->header == 0) {
            if (byte >> 4 == 0) {
                return FEDMOTE_ERR_LINK;
            }
            mqtt->header = byte;
            continue;
        }
        mqtt->length |= (uint32_t)(byte & 0x7F) << 7 * mqtt->length_bytes++;
        mqtt->is_length_known = (byte & 0x80) == 0;
        if (!mqtt->is_length_known && mqtt->length_bytes == 4) {
            return FEDMOTE_ERR_LINK;
        }
    }
    return FEDMOTE_OK;
}

/* Reads on in the current packet. Returns 1 when it is complete, FEDMOTE_OK when bytes are missing, or an error. */
static int32_t read_packet(struct fedmote_line *line) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    int32_t status = read_header(line);
    if (status < 0 || !mqtt->is_length_known) {
        return status;
    }
    if (mqtt->received < mqtt->length) {
        uint8_t past[64]; /* for what lies behind the buffer's end */
        bool is_kept = mqtt->received < line->capacity;
        uint32_t room = is_kept ? line->capacity - mqtt->received : (uint32_t)sizeof past;
        uint32_t left = mqtt->length - mqtt->received;
        int32_t moved =
            fedmote_line_read(line, is_kept ? line->receive + mqtt->received : past, left < room ? left : room);
        if (moved < 0) {
            return moved;
        }
        mqtt->received += (uint32_t)moved;
    }
    return mqtt->received == mqtt->length ? 1 : FEDMOTE_OK;
}

/* ---- the link -----------------------------------------------------------------------------------------------------
 */

/* Writes what is waiting: a packet that has begun first, then PUBACK or PINGREQ. */
static int32_t flush(struct fedmote_line *line) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    int32_t status = fedmote_line_flush(line);
    if (status < 0 || line->tx_begin != line->tx_end) {
        return status;
    }
    if (mqtt->small_size == 0 && mqtt->is_ping_owed) {
        mqtt->small_size = (uint8_t)put_header(mqtt->small, PINGREQ, 0, 0);
        mqtt->is_ping_owed = false;
    }
    if (mqtt->small_size == 0) {
        return FEDMOTE_OK;
    }
    uint32_t left = (uint32_t)mqtt->small_size - mqtt->small_sent;
    int32_t moved = line->port->stream_write(line->port->context, mqtt->small + mqtt->small_sent, left);
    if (moved < 0 || (uint32_t)moved > left) {
        return FEDMOTE_ERR_LINK;
    }
    line->has_moved = line->has_moved || moved > 0;
    mqtt->small_sent = (uint8_t)(mqtt->small_sent + moved);
    if (mqtt->small_sent == mqtt->small_size) {
        mqtt->small_sent = mqtt->small_size = 0;
    }
    return FEDMOTE_OK;
}

/* Time-outs and PINGREQ. */
static int32_t run_timers(struct fedmote_line *line, uint32_t now) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    if (fedmote_until(mqtt->deadline, now) > 0) {
        return FEDMOTE_OK;
    }
    if (mqtt->state != FEDMOTE_MQTT_UP || !mqtt->is_alive) {
        return FEDMOTE_ERR_TIMEOUT;
    }
    mqtt->is_ping_owed = true;
    mqtt->is_alive = false;
    mqtt->deadline = now + keep_alive_s(line) * 500;
    return FEDMOTE_OK;
}

static int32_t mqtt_poll(struct fedmote_line *line, uint32_t now, struct fedmote_frame *frame) {
    struct fedmote_mqtt *mqtt = &line->as.mqtt;
    line->has_moved = false;
    if (mqtt->state == FEDMOTE_MQTT_WAIT) {
        if (fedmote_until(mqtt->deadline, now) == 0) {
            begin_session(line, now);
        }
        return FEDMOTE_OK;
    }
    int32_t status = flush(line);
    bool is_owing = mqtt->small_size > 0; /* the next packet may need the place of this answer */
    if (status == FEDMOTE_OK && !is_owing) {
        status = read_packet(line);
        if (status == 1) {
            status = take_packet(line, now, frame);
            forget_packet(mqtt);
        }
    }
    if (status == FEDMOTE_OK) {
        status = run_timers(line, now);
    }
    if (status < 0) {
        lose(line, status, now);
        return FEDMOTE_OK;
    }
    return status;
}

static void mqtt_open(struct fedmote_line *line) {
    memset(&line->as.mqtt, 0, sizeof line->as.mqtt);
    line->as.mqtt.backoff_ms = BACKOFF_MIN_MS;
    line->as.mqtt.deadline = line->port->now_ms(line->port->context);
}

static uint32_t mqtt_wake_ms(const struct fedmote_line *line, uint32_t now) {
    const struct fedmote_mqtt *mqtt = &line->as.mqtt;
    if (mqtt->is_ping_owed || mqtt->small_size > 0) {
        return 1; /* a broker that waits for these would hang up before the next timer */
    }
    return fedmote_until(mqtt->deadline, now);
}

const struct fedmote_link fedmote_mqtt_link = {mqtt_open, mqtt_poll, mqtt_send, mqtt_wake_ms};
