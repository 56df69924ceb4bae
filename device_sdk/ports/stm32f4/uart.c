/* SPDX-License-Identifier: Apache-2.0
 *
 * USART1 with two rings. The receiver fills its ring from the interrupt; the transmitter is emptied by whoever finds
 * the data register free: the interrupt on the part, the writer itself in emulators that raise no transmit interrupt.
 *
 * Each ring has one producer and one consumer. Indices run freely and wrap at 2^32, which a power of two as size
 * makes harmless; a byte is stored before the index that publishes it.
 */
#include "fedmote_board.h"
#include "registers.h"
#include "stm32f4.h"

#if (STM32_UART_RING & (STM32_UART_RING - 1U)) != 0U
#error "STM32_UART_RING must be a power of two"
#endif

struct ring {
    volatile uint32_t head; /* bytes ever put in */
    volatile uint32_t tail; /* bytes ever taken out */
    volatile uint8_t bytes[STM32_UART_RING];
};

static struct ring received, sending;

static bool ring_put(struct ring *ring, uint8_t byte) {
    if (ring->head - ring->tail == STM32_UART_RING) {
        return false;
    }
    ring->bytes[ring->head % STM32_UART_RING] = byte;
    ring->head++;
    return true;
}

static bool ring_take(struct ring *ring, uint8_t *byte) {
    if (ring->head == ring->tail) {
        return false;
    }
    *byte = ring->bytes[ring->tail % STM32_UART_RING];
    ring->tail++;
    return true;
}

/* Only with the transmit interrupt off, or from it: the sending ring has one consumer at a time. */
static void send_while_free(void) {
    uint8_t byte;
    while ((USART1_SR & USART_SR_SENDABLE) != 0U && ring_take(&sending, &byte)) {
        USART1_DR = byte;
    }
}

void usart1_handler(void);

void usart1_handler(void) {
    uint32_t flags = USART1_SR;
    /* Reading the data register clears both flags; after an overrun the byte itself is good, the one behind it is gone.
     */
    if ((flags & (USART_SR_RECEIVED | USART_SR_OVERRUN)) != 0U) {
        uint8_t byte = (uint8_t)USART1_DR;
        if ((flags & USART_SR_RECEIVED) != 0U) {
            (void)ring_put(&received,
                           byte); /* a full ring loses the byte; the frame that it was part of is asked for again */
        }
    }
    if ((USART1_CR1 & USART_CR1_SENDABLE_INTERRUPT) != 0U) {
        send_while_free();
        if (sending.head == sending.tail) {
            USART1_CR1 &= ~USART_CR1_SENDABLE_INTERRUPT;
        }
    }
}

void stm32_uart_start(void) {
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOA;
    RCC_APB2ENR |= RCC_APB2ENR_USART1;
    /* PA9 and PA10: alternate function 7; the input is pulled up, so that an open line reads as idle. */
    GPIO_MODER(GPIOA_BASE) = (GPIO_MODER(GPIOA_BASE) & ~(0xFU << 18)) | (0xAU << 18);
    GPIO_PUPDR(GPIOA_BASE) = (GPIO_PUPDR(GPIOA_BASE) & ~(3U << 20)) | (1U << 20);
    GPIO_AFR_HIGH(GPIOA_BASE) = (GPIO_AFR_HIGH(GPIOA_BASE) & ~(0xFFU << 4)) | (0x77U << 4);
    USART1_BRR = (stm32_peripheral_hz() + FEDMOTE_BOARD_UART_BAUD / 2U) / FEDMOTE_BOARD_UART_BAUD;
    USART1_CR1 = USART_CR1_ENABLE | USART_CR1_TRANSMITTER | USART_CR1_RECEIVER | USART_CR1_RECEIVED_INTERRUPT;
    NVIC_ENABLE(USART1_INTERRUPT / 32U) = 1U << (USART1_INTERRUPT % 32U);
}

int32_t stm32_uart_read(uint8_t *bytes, uint32_t capacity) {
    uint32_t count = 0;
    while (count < capacity && ring_take(&received, &bytes[count])) {
        count++;
    }
    return (int32_t)count;
}

int32_t stm32_uart_write(const uint8_t *bytes, uint32_t size) {
    uint32_t count = 0;
    while (count < size && ring_put(&sending, bytes[count])) {
        count++;
    }
    USART1_CR1 &= ~USART_CR1_SENDABLE_INTERRUPT;
    send_while_free();
    if (sending.head != sending.tail) {
        USART1_CR1 |= USART_CR1_SENDABLE_INTERRUPT;
    }
    return (int32_t)count;
}

void stm32_uart_say(const char *message) {
    for (; *message != '\0'; message++) {
        const uint8_t byte = (uint8_t)*message;
        while (stm32_uart_write(&byte, 1U) == 0) {
        }
    }
    while (sending.head != sending.tail) {
        (void)stm32_uart_write((const uint8_t *)"", 0U);
    }
}
