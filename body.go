package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// JSON of callers: request bodies, token headers and claims. encoding/json takes
// null for an object, the last of two equal names, names in another case, and
// turns what is no UTF-8 into U+FFFD, so this file reads objects by stricter rules.

var (
	errNotUTF8   = errors.New("must be UTF-8")
	errNotObject = errors.New("must be one JSON object")
	errSyntax    = errors.New("must be valid JSON, with nothing after the object")
	errSurrogate = errors.New("must not have an unpaired surrogate escape")
	errNameTwice = errors.New("must not give a member name twice")
	errNotString = errors.New("must be a string")
)

// scanObject calls member for each member of the one object that data is, with its
// unescaped name and its value as it stands. Names match letter for letter; none
// stands twice, though inside a value they may. It fails with one of the errors above,
// which may be after some calls.
func scanObject(data []byte, member func(name, value []byte)) error {
	if !utf8.Valid(data) {
		return errNotUTF8
	}
	s := scanner{data: data}
	if s.space(); s.peek() != '{' {
		return errNotObject
	}
	var few [8][]byte // as many as most objects have, off the heap
	names := few[:0]
	s.pos++
	for s.space(); s.peek() != '}'; {
		if len(names) > 0 {
			if s.peek() != ',' {
				return s.failure()
			}
			s.pos++
		}
		name, ok := s.name()
		if !ok {
			return s.failure()
		}
		s.space()
		start := s.pos
		if !s.value() {
			return s.failure()
		}
		member(name, data[start:s.pos])
		names = append(names, name)
		s.space()
	}
	s.pos++
	if s.space(); s.pos < len(data) {
		return s.failure()
	}
	slices.SortFunc(names, bytes.Compare)
	for i := 1; i < len(names); i++ {
		if bytes.Equal(names[i-1], names[i]) {
			return errNameTwice
		}
	}
	return nil
}

// scanner reads JSON (RFC 8259) from pos on. Its methods report whether what they
// are named after stands there, and move behind it.
type scanner struct {
	data      []byte
	pos       int
	surrogate bool // the failure is an unpaired surrogate escape
}

func (s *scanner) failure() error {
	if s.surrogate {
		return errSurrogate
	}
	return errSyntax
}

// peek is the next byte, 0 at the end: no JSON begins with either.
func (s *scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

func (s *scanner) space() {
	for c := s.peek(); c == ' ' || c == '\t' || c == '\n' || c == '\r'; c = s.peek() {
		s.pos++
	}
}

// name is a member's name, unescaped, up to and with its colon.
func (s *scanner) name() ([]byte, bool) {
	s.space()
	start := s.pos
	if !s.str() {
		return nil, false
	}
	name := unquote(s.data[start:s.pos])
	if s.space(); s.peek() != ':' {
		return nil, false
	}
	s.pos++
	return name, true
}

// value holds what it is inside of on a stack of its own: a body may nest 64 Ki deep.
func (s *scanner) value() bool {
	var closers []byte
	for {
		s.space()
		switch c := s.peek(); c {
		case '{', '[':
			s.pos++
			closer := c + 2 // '}' and ']' in ASCII
			s.space()
			if s.peek() != closer {
				closers = append(closers, closer)
				if c == '{' {
					if _, ok := s.name(); !ok {
						return false
					}
				}
				continue
			}
			s.pos++
		case '"':
			if !s.str() {
				return false
			}
		default:
			if !s.literal("true") && !s.literal("false") && !s.literal("null") && !s.number() {
				return false
			}
		}
		// A value has ended, and with it perhaps what it is inside of.
		for {
			if len(closers) == 0 {
				return true
			}
			s.space()
			c, closer := s.peek(), closers[len(closers)-1]
			s.pos++
			if c == closer {
				closers = closers[:len(closers)-1]
				continue
			}
			if c != ',' {
				return false
			}
			if closer == '}' {
				if _, ok := s.name(); !ok {
					return false
				}
			}
			break
		}
	}
}

func (s *scanner) literal(word string) bool {
	if !bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
		return false
	}
	s.pos += len(word)
	return true
}

func (s *scanner) number() bool {
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
	} else if !s.digits() {
		return false
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return false
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		return s.digits()
	}
	return true
}

func (s *scanner) digits() bool {
	start := s.pos
	for c := s.peek(); '0' <= c && c <= '9'; c = s.peek() {
		s.pos++
	}
	return s.pos > start
}

func (s *scanner) str() bool {
	if s.peek() != '"' {
		return false
	}
	for s.pos++; ; s.pos++ {
		switch c := s.peek(); {
		case c == '"':
			s.pos++
			return true
		case c < ' ': // a control character, or the end
			return false
		case c != '\\':
			continue
		}
		s.pos++
		switch s.peek() {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			r, ok := hex4(s.data[s.pos+1:])
			if !ok {
				return false
			}
			s.pos += 4
			if utf16.IsSurrogate(r) {
				rest := s.data[s.pos+1:]
				low, ok := rune(0), false
				if bytes.HasPrefix(rest, []byte(`\u`)) {
					low, ok = hex4(rest[2:])
				}
				if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
					s.surrogate = true
					return false
				}
				s.pos += 6
			}
		default:
			return false
		}
	}
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		n, ok := unhex(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(n)
	}
	return r, true
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// unquote is what a scanned string says. Most have no escape and stay where they are.
func unquote(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var text string
	if err := json.Unmarshal(quoted, &text); err != nil {
		panic(err) // scanned: valid, so it decodes
	}
	return []byte(text)
}

// text is the string that a scanned value is; null is "", as if it were not given.
func text(value []byte) (string, error) {
	switch value[0] {
	case '"':
		return string(unquote(value)), nil
	case 'n':
		return "", nil
	}
	return "", errNotString
}

// decodeObject is the one object that data is, by scanObject's rules; numbers are json.Number.
func decodeObject(data []byte) (map[string]any, error) {
	if err := scanObject(data, func(_, _ []byte) {}); err != nil {
		return nil, err
	}
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return object, d.Decode(&object)
}

// appendString appends text as a JSON string.
func appendString(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return append(b, encodeJSON(text)...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}

// encodeJSON is v as JSON, without the escapes meant for HTML.
func encodeJSON(v any) []byte {
	b := bytes.NewBuffer(make([]byte, 0, 512))
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // only for what cannot be JSON: a bug
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
