/** Calls a listener of the caller's. Its error is not the server's fault and not ours to hide: it goes where those of event listeners go. */
export function tell(call: () => void): void {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
