"""The GPU book: sampler overhead, step time, memory and gradients at true shapes."""
