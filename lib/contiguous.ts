/** Slot m holds expert m modulo the experts, as engines start without a map. `[layers][slots]` */
export function contiguous(layers: number, experts: number, slots: number): Int32Array {
  return Int32Array.from({ length: layers * slots }, (_, n) => (n % slots) % experts);
}
