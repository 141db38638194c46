"""A TCP server that says the name of its host first, then echoes line by line. Arguments: the port, the address."""

import os
import socketserver
import sys

NAME = os.path.basename(os.getcwd())


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write((NAME + "\n").encode())
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server((sys.argv[2], int(sys.argv[1])), Handler).serve_forever()
