//! mimalloc that counts, so that "no allocation per packet" is a number and not a hope.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use mimalloc::MiMalloc;

/// mimalloc with a count of allocations and a balance of bytes per thread: adds to thread-local cells.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: pop_uring::alloc::CountingAllocator = pop_uring::alloc::CountingAllocator::new();
///
/// let before = pop_uring::alloc::thread_allocations();
/// let boxed = std::hint::black_box(Box::new(1));
/// assert_eq!(pop_uring::alloc::thread_allocations() - before, 1);
/// # drop(boxed);
/// ```
#[derive(Debug, Default)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// The allocator.
    pub const fn new() -> Self {
        Self
    }
}

thread_local! {
    // Constant and without a destructor: reading it allocates nothing and works to the thread's last breath.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Allocations and reallocations of the calling thread since it started; 0 unless the program runs on [`CountingAllocator`].
pub fn thread_allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// Bytes that the calling thread allocated since it started, less those that it freed, of whichever thread they were; 0 unless the
/// program runs on [`CountingAllocator`].
pub fn thread_bytes() -> i64 {
    BYTES.with(Cell::get)
}

fn count(bytes: i64) {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
    balance(bytes);
}

fn balance(bytes: i64) {
    BYTES.with(|balance| balance.set(balance.get() + bytes));
}

// SAFETY: every call goes to mimalloc unchanged, which keeps the contract; counting touches no memory of the caller.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those that mimalloc asks for.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those that mimalloc asks for.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        balance(-(layout.size() as i64));
        // SAFETY: the block came from mimalloc by one of the functions here, with this layout.
        unsafe { MiMalloc.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as i64 - layout.size() as i64);
        // SAFETY: the block came from mimalloc by one of the functions here, with this layout.
        unsafe { MiMalloc.realloc(address, layout, new_size) }
    }
}
