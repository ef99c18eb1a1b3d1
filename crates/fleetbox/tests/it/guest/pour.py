import socket, sys, time
s = socket.create_connection((sys.argv[1], 9008)); end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end: s.send(bytes(16384))
s.close()
