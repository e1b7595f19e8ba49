/* The functions of PCI bus 0, found by CF8/CFC or in a memory-mapped configuration space. */
#ifndef PCI_H
#define PCI_H

#include "machine.h"

/* Where configuration space is mapped, 0 where the ports are used. */
void pci_use_ecam(uint64_t base);

/* Gives every memory BAR of every function a place below 4 GiB, and turns them on. */
void pci_place_bars(void);

uint32_t pci_read(uint32_t slot, uint32_t offset);
uint8_t pci_read_8(uint32_t slot, uint32_t offset);

/* The slot of the nth function with an identity (device << 16 | vendor), or -1. */
int pci_find(uint32_t identity, uint32_t nth);

/* What a memory BAR has been given. */
volatile uint8_t *pci_bar(uint32_t slot, uint32_t bar);

#endif
