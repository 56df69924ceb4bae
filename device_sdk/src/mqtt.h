/* SPDX-License-Identifier: Apache-2.0
 *
 * MQTT 3.1.1 client over the port's byte stream, as much of it as the protocol needs (protocol/SPEC.md, section 3).
 */
#ifndef FEDMOTE_MQTT_H
#define FEDMOTE_MQTT_H

#include "fedmote/fedmote.h"

enum fedmote_mqtt_state {
    FEDMOTE_MQTT_WAIT,      /* until `deadline`, then CONNECT */
    FEDMOTE_MQTT_CONNECT,   /* CONNECT is out; CONNACK until `deadline` */
    FEDMOTE_MQTT_SUBSCRIBE, /* SUBSCRIBE is out; SUBACK until `deadline` */
    FEDMOTE_MQTT_UP,        /* `deadline` is the next PINGREQ */
};

struct fedmote_mqtt {
    uint8_t state;
    uint8_t header;       /* first byte of the packet that is being received; 0: none */
    uint8_t length_bytes; /* of its remaining length that were read */
    bool is_length_known;
    bool is_alive; /* a packet came since the last PINGREQ */
    bool is_ping_owed;
    uint8_t small[4]; /* a PUBACK or PINGREQ on its way out */
    uint8_t small_size, small_sent;
    uint16_t packet_id;
    uint32_t length;   /* remaining length of the packet */
    uint32_t received; /* bytes of it so far */
    uint32_t deadline;
    uint32_t backoff_ms;
};

#endif
