"""Answers each TCP connection with what its PROXY protocol v2 header said, as JSON. Arguments: the port, the address.

Reads the header by the specification of HAProxy (proxy-protocol.txt, section 2.2), including the CRC32C TLV.
"""

import json
import socketserver
import struct
import sys

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        head = self.rfile.read(16)
        if head[:12] != SIGNATURE:
            self.wfile.write(json.dumps({"error": "no signature", "got": head.hex()}).encode())
            return
        length = struct.unpack("!H", head[14:16])[0]
        rest = self.rfile.read(length)
        size = {0x11: 12, 0x21: 36, 0x00: 0}.get(head[13], 0)
        tlvs, at, crc_ok = {}, size, None
        while at + 3 <= len(rest):
            kind, count = rest[at], struct.unpack("!H", rest[at + 1 : at + 3])[0]
            value = rest[at + 3 : at + 3 + count]
            if kind == 0x03:
                whole = head + rest[: at + 3] + b"\0\0\0\0" + rest[at + 7 :]
                crc_ok = struct.unpack("!I", value)[0] == crc32c(whole)
            else:
                tlvs[f"{kind:02x}"] = value.decode("utf-8", "replace") if kind != 0x05 else value.hex()
            at += 3 + count
        address = ".".join(str(b) for b in rest[:4]) if head[13] == 0x11 else ""
        port = struct.unpack("!H", rest[8:10])[0] if head[13] == 0x11 else 0
        answer = {"command": head[12], "family": head[13], "client": address, "port": port, "tlvs": tlvs, "crc": crc_ok}
        self.wfile.write(json.dumps(answer).encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server((sys.argv[2], int(sys.argv[1])), Handler).serve_forever()
