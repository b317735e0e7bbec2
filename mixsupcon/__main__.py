"`python -m mixsupcon`: runs, encoders, methods and options on the terminal."
import sys

from .lab.command import main

sys.exit(main())
