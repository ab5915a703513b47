// A server of lines on mqtt.js, as `mqtt_servers.py` has them: node mqtt_js.js QOS BROKERPORT
"use strict";
const net = require("net");
const readline = require("readline");
const mqtt = require("mqtt");

const qos = Number(process.argv[2]);
const broker = `mqtt://127.0.0.1:${process.argv[3]}`;
let numbers = 0;
let connections = 0;
let registered = 0;
let lines = 0;

const server = net.createServer((socket) => {
  connections += 1;
  const number = numbers++;
  const topic = `bench/${String(number).padStart(6, "0")}`;
  const client = mqtt.connect(broker, { protocolVersion: 5, clientId: `node${number}`, reconnectPeriod: 0 });
  let rest = Buffer.alloc(0);
  let ready = false;
  let ended = false;

  const take = (data) => {
    rest = rest.length ? Buffer.concat([rest, data]) : data;
    if (!ready || ended) return;
    let start = 0;
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10, start)) {
      const line = rest.subarray(start, end);
      const whole = rest.subarray(start, end + 1);
      start = end + 1;
      lines += 1;
      if (qos) {
        client.publish(topic, line, { qos }, (error) => error || socket.destroyed || socket.write(whole));
      } else {
        client.publish(topic, line);
        socket.write(whole);
      }
    }
    rest = rest.subarray(start);
  };

  socket.setNoDelay(true);
  socket.on("data", take);
  socket.on("error", () => {});
  socket.on("close", () => {
    connections -= 1;
    ended = true;
    client.end();
  });
  client.on("error", () => socket.destroy());
  client.on("connect", () => {
    registered += 1;
    ready = true;
    take(Buffer.alloc(0));
  });
});

server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => console.log(server.address().port));
readline
  .createInterface({ input: process.stdin })
  .on("line", () => console.log(connections, registered, lines))
  .on("close", () => process.exit(0));
