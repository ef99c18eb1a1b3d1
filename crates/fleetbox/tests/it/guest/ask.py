# Sends numbered datagrams to another's echo and prints, over the answers, how many came and the median
# round trip in milliseconds. It never is far ahead of the answers: what a slow guest cannot take it
# would lose by itself.
import socket, sys, time, struct, select
host, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
AHEAD, SILENCE = 64, 2
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((host, 9007)); s.setblocking(False)
trips, begin, last = [], time.monotonic(), 0
def hear(limit):
    global last
    ready, _, _ = select.select([s], [], [], limit)
    if not ready: return False
    try:
        while True:
            sent, number = struct.unpack('!dI', s.recv(64)[:12])
            trips.append(time.monotonic() - sent); last = max(last, number)
    except (BlockingIOError, ConnectionRefusedError): pass
    return True
for n in range(count):
    while begin + n / rate > time.monotonic(): hear(max(0, begin + n / rate - time.monotonic()))
    while n - last > AHEAD:
        if not hear(SILENCE): last = n
    try: s.send(struct.pack('!dI', time.monotonic(), n) + bytes(36))
    except (BlockingIOError, ConnectionRefusedError): pass
while hear(SILENCE): pass
trips.sort()
print(len(trips), trips[len(trips)//2]*1000 if trips else -1)
