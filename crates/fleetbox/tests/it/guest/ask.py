import socket, sys, time, struct, select
host, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((host, 9007)); s.setblocking(False)
trips, begin = [], time.monotonic()
def hear(limit):
    ready, _, _ = select.select([s], [], [], limit)
    if not ready: return False
    try:
        while True: trips.append(time.monotonic() - struct.unpack('!d', s.recv(64)[:8])[0])
    except (BlockingIOError, ConnectionRefusedError): pass
    return True
for n in range(count):
    while begin + n / rate > time.monotonic(): hear(max(0, begin + n / rate - time.monotonic()))
    try: s.send(struct.pack('!d', time.monotonic()) + bytes(40))
    except (BlockingIOError, ConnectionRefusedError): pass
while hear(2): pass
trips.sort()
print(len(trips), trips[len(trips)//2]*1000 if trips else -1)
