// Writes whatwg.json: how the WHATWG URL parser, the one of browsers, reads many URIs.
//
//   cd internal/redirecturi && node testdata/whatwg.mjs > testdata/whatwg.json
//
// A row is [uri, protocol, hostname, username] or, where the parser refuses, [uri].

const schemes = ["https:", "HTTPS:", "http:", "com.example.app:", "a.b+c-d:", "javascript:", "data:"];
const authorities = [
  "", "//", "///", "//app.example.com", "//APP.Example.COM", "//app.example.com:8443", "//app.example.com:443", "//app.example.com:65535",
  "//app.example.com:65536", "//app.example.com:0", "//app.example.com:080", "//app.example.com:", "//app.example.com:80a", "//app.example.com.",
  "//a-b.example", "//-a.example", "//a-.example", "//a--b.example", "//a_b.example", "//xn--bcher-kva.example", "//1.example", "//example.1", "//example.0x1f",
  "//example.0x", "//0x7f.1", "//0x7f000001", "//2130706433", "//017700000001", "//127.1", "//127.0.0.1", "//127.0.0.1:51004", "//127.0.0.01",
  "//256.0.0.1", "//1.2.3.4.5", "//1.2.3", "//0x1.2.3.4", "//[::1]", "//[::1]:51004", "//[2001:db8::1]", "//[::ffff:1.2.3.4]", "//[::1%25eth0]", "//[::1]x",
  "//[v1.a]", "//[::1", "//::1", "//localhost", "//LocalHost:3000", "//localhost.", "//user@app.example.com", "//user:pw@app.example.com",
  "//app.example.com@evil.example", "//app.example.com%40evil.example", "//ex%61mple.com", "//evil.example\\@app.example.com", "//a b.example",
  "//a..example", "//.example", "//" + "a".repeat(63) + ".example", "//" + "a".repeat(64) + ".example", "//a,b.example", "//a!b.example", "//a~b.example",
  "//XN--BCHER-KVA.example", "//xn--a.example", "//xn--.example", "//xn--0.example", "//xn--ls8h.example",
];
const tails = [
  "", "/", "/cb", "//evil.example", "/%2F%2Fevil.example", "/a/../b", "/%2e%2e/b", "/a;x=1/b", "/cb?state=1&a=b", "/cb?a[0]=1", "?x=1", "/@evil.example",
  "/cb?next=https://evil.example/@", "/cb#frag", "/\\evil.example",
];

const rows = [];
for (const scheme of schemes)
  for (const authority of authorities)
    for (const tail of tails) {
      const uri = scheme + authority + tail;
      // Each authority with a few tails, and each tail with a few authorities, say it all.
      if (authorities.indexOf(authority) % 20 !== 3 && tails.indexOf(tail) > 2) continue;
      try {
        const u = new URL(uri);
        rows.push([uri, u.protocol, u.hostname, u.username]);
      } catch {
        rows.push([uri]);
      }
    }
console.log("[\n" + rows.map((row) => JSON.stringify(row)).join(",\n") + "\n]");
