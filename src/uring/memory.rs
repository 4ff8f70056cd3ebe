//! Free memory that the allocator keeps.

/// Gives free memory back to the kernel, in time proportional to its size.
///
/// The allocator does so by itself only at the end of its heap, and memory that outlives a burst of
/// connections lies behind memory that the burst has freed.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
