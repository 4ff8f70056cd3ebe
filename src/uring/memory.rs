//! Memory that the allocator keeps although nothing is in it.

/// Gives free memory back to the kernel. Takes time in proportion to what is free.
///
/// The allocator does so by itself only at the end of its heap, and what lives longer than a burst
/// of connections lies behind what they have left.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
