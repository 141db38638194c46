"""An SMTP server (it speaks first) with the aiosmtpd library; keeps the last message. Arguments: the port, the address."""

import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Debugging

controller = Controller(Debugging(sys.stdout), hostname=sys.argv[2], port=int(sys.argv[1]))
controller.start()
threading.Event().wait()
