package redisurl

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

// readAll reads what a connection says through replies, by a reader of it that splits it somehow.
func readAll(text string, split func(io.Reader) io.Reader) (string, error) {
	r := &replies{Conn: said{r: split(strings.NewReader(text))}}
	got, err := io.ReadAll(r)
	return string(got), err
}

// said is a connection that says what r does.
type said struct {
	net.Conn
	r io.Reader
}

func (s said) Read(p []byte) (int, error) { return s.r.Read(p) }

// Replies within the limits pass byte for byte, and others fail before anybody sees their announcement, however reads
// split them.
func TestReplies(t *testing.T) {
	const good = "+OK\r\n"
	long := strings.Repeat("x", maxLength)
	for _, test := range []struct {
		text string
		want error
	}{
		{good, nil},
		{"-ERR no\r\n:-5\r\n$-1\r\n*-1\r\n*0\r\n$0\r\n\r\n" + good, nil},
		{"$5\r\n*9\r\n\n\r\n" + good, nil}, // a string that looks like a line
		{"*2\r\n$10\r\n1795396347\r\n$6\r\n123456\r\n" + good, nil},
		{"*2\r\n*1\r\n*3\r\n:1\r\n$1\r\nx\r\n*0\r\n:2\r\n" + good, nil},
		{"$65536\r\n" + long + "\r\n" + good, nil},
		{"*65536\r\n" + strings.Repeat(":1\r\n", 65536) + good, nil},
		{strings.Repeat("*1\r\n", 8) + ":1\r\n" + good, nil},
		{"_\r\n#t\r\n,1.5\r\n(123\r\n=5\r\ntxt:x\r\n!2\r\nno\r\n>1\r\n:1\r\n" + good, nil},
		{strings.Repeat("%1\r\n$1\r\nx\r\n~2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n", 20) + good, nil},
		{strings.Repeat("*2\r\n$65536\r\n"+long+"\r\n:1\r\n", 200) + good, nil}, // 12.5 MiB in many replies

		{"$9223372036854775806\r\n", errTooLarge},
		{"$9223372036854775808\r\n", errTooLarge},
		{"$100000000000000\r\n", errTooLarge},
		{"$65537\r\n", errTooLarge},
		{"*65537\r\n", errTooLarge},
		{"*2\r\n:1\r\n*9223372036854775807\r\n", errTooLarge},
		{strings.Repeat("*1\r\n", 9), errTooLarge},
		{"+" + long, errTooLarge},
		{"*65536\r\n" + strings.Repeat("$65536\r\n"+long+"\r\n", 128), errTooLarge},
		{strings.Repeat("*1\r\n|1\r\n:1\r\n:1\r\n", 5), errTooLarge},
		{strings.Repeat("|0\r\n", 9), errTooLarge},
		{"%65537\r\n", errTooLarge},
		{"=65537\r\n", errTooLarge},
		{"$?\r\n", errNotRESP},
		{"\r\n", errNotRESP},
		{"$\r\n", errNotRESP},
		{"$-2\r\n", errNotRESP},
		{"*1 \r\n", errNotRESP},
		{"$1\n\r\n", errNotRESP},
		{"$1x\r\n", errNotRESP},
		{"HTTP/1.1 400 Bad Request\r\n", errNotRESP},
	} {
		for name, split := range map[string]func(io.Reader) io.Reader{
			"whole":    func(r io.Reader) io.Reader { return r },
			"bytes":    iotest.OneByteReader,
			"halves":   iotest.HalfReader,
			"with EOF": iotest.DataErrReader,
		} {
			got, err := readAll(good+test.text, split)
			if !errors.Is(err, test.want) || test.want == nil && got != good+test.text {
				t.Errorf("%s of %.40q = %d bytes, %v, want %d and %v", name, test.text, len(got), err,
					len(good+test.text), test.want)
			}
		}
	}
	r := &replies{Conn: said{r: strings.NewReader("?\r\n" + good)}}
	for range 2 {
		if n, err := r.Read(make([]byte, 3)); n != 0 || !errors.Is(err, errNotRESP) {
			t.Errorf("Read of a connection that has failed = %d, %v, want the failure", n, err)
		}
	}
}

// Where reads split a reply does not matter.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("+OK\r\n*2\r\n$1\r\nx\r\n:1\r\n"))
	f.Add([]byte("$-1\r\n*1\r\n*0\r\n$65537\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		whole, bits := &replies{}, &replies{}
		wholeErr := whole.follow(text)
		var err error
		for part := range bytes.Lines(text) {
			for len(part) > 0 && err == nil {
				n := min(len(part), 1+len(part)/3)
				err, part = bits.follow(part[:n]), part[n:]
			}
		}
		if !errors.Is(err, wholeErr) || err == nil && (bits.size != whole.size || len(bits.arrays) != len(whole.arrays)) {
			t.Errorf("%q in bits = %v, %+v, whole %v, %+v", text, err, bits, wholeErr, whole)
		}
	})
}
