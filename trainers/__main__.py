"""`accelerate launch -m comfyui_fewstep.trainers RUN`: executes a run folder, on as many processes as the launcher starts.

The entry from outside, which nobody imports: so it may name the room above.
"""

from ..commands.train import main

if __name__ == "__main__":
    main()
