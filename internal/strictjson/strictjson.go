// Package strictjson reads JSON objects that callers send, such as request bodies and token claims, and appends JSON.
//
// Object accepts a JSON text (RFC 8259) that is one object. It rejects input that two parsers may read differently:
// invalid UTF-8, unpaired surrogate escapes, duplicate member names in one object, and nesting deeper than 1,000
// levels. Names are case-sensitive. (encoding/json replaces invalid UTF-8, uses the last of duplicate names, ignores
// the case of names, and accepts null as an object.)
package strictjson

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is the maximum nesting depth of objects and arrays. The outermost object has depth 1.
const maxDepth = 1000

// Each message follows the name of its input, as in "the body must be UTF-8".
var (
	errBOM        = errors.New("must not begin with a byte order mark")
	errNotObject  = errors.New("must be one JSON object")
	errNameTwice  = errors.New("must not give a member name twice in one object")
	errTooDeep    = fmt.Errorf("must not nest deeper than %d levels", maxDepth)
	errNotString  = errors.New("must be a string")
	errNotStrings = errors.New("must be an array of strings")
)

// decoders are pooled because a new decoder makes reading a usual body a third slower (0.79 µs instead of 0.59 µs).
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// Object calls member for each member of the JSON object in data, in order. The name is unescaped; the value is its
// part of data, still encoded. Object may return an error after it has called member. An error names the rule and, for
// a syntax error, the byte offset in data; it never quotes data.
func Object(data []byte, member func(name, value []byte)) error {
	if bytes.HasPrefix(data, []byte("\ufeff")) { // RFC 8259, section 8.1
		return errBOM
	}
	d := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(d)
	d.Reset(bytes.NewBuffer(data))
	if d.PeekKind() != '{' {
		return errNotObject
	}
	if _, err := d.ReadToken(); err != nil {
		return reason(data, err)
	}
	for d.PeekKind() != '}' {
		name, nameErr := next(d, data)
		value, valueErr := next(d, data)
		if err := cmp.Or(nameErr, valueErr); err != nil {
			return reason(data, err)
		}
		member(unquote(name), value)
	}
	if _, err := d.ReadToken(); err != nil {
		return reason(data, err)
	}
	end := d.InputOffset()
	if _, err := d.ReadToken(); err != io.EOF {
		return fmt.Errorf("must have nothing after its object, which ends at byte offset %d", end)
	}
	return nil
}

// next reads a name or a value and returns its part of data. It reads token by token because the decoder's own limit on
// nesting is 10,000 levels.
func next(d *jsontext.Decoder, data []byte) ([]byte, error) {
	for before, depth := d.InputOffset(), d.StackDepth(); ; {
		if _, err := d.ReadToken(); err != nil {
			return nil, err
		}
		switch now := d.StackDepth(); {
		case now > maxDepth:
			return nil, errTooDeep
		case now == depth:
			return bytes.TrimLeft(data[before:d.InputOffset()], ",: \t\r\n"), nil
		}
	}
}

// reason replaces an error of the decoder, because the decoder's messages quote data.
func reason(data []byte, err error) error {
	syntax, isSyntax := errors.AsType[*jsontext.SyntacticError](err)
	if !isSyntax {
		return err
	}
	char, size := utf8.DecodeRune(data[syntax.ByteOffset:])
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errNameTwice
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("must be valid JSON: it ends too early, at byte offset %d", len(data))
	case char == utf8.RuneError && size == 1:
		return fmt.Errorf("must be UTF-8: the error is at byte offset %d", syntax.ByteOffset)
	case bytes.HasPrefix(data[syntax.ByteOffset:], []byte(`\u`)):
		return fmt.Errorf(`must be valid JSON: the \u escape at byte offset %d is invalid or unpaired`, syntax.ByteOffset)
	}
	return fmt.Errorf("must be valid JSON: the error is at byte offset %d", syntax.ByteOffset)
}

// Text decodes a value from Object that must be a string. It returns "" for null and for nil (an absent member), and an
// error for any other type.
func Text(value []byte) (string, error) {
	switch jsontext.Value(value).Kind() {
	case '"':
		return string(unquote(value)), nil
	case 'n', 0:
		return "", nil
	}
	return "", errNotString
}

// Texts decodes a value from Object that must be an array of strings. It returns nil for null and for nil (an absent
// member), and an error for any other type, or for an element that is no string.
func Texts(value []byte) ([]string, error) {
	if len(value) == 0 {
		return nil, nil
	}
	var elements []jsontext.Value
	if err := json.Unmarshal(value, &elements); err != nil {
		return nil, errNotStrings
	}
	if elements == nil {
		return nil, nil
	}
	texts := make([]string, len(elements))
	for i, element := range elements {
		if element.Kind() != '"' {
			return nil, errNotStrings
		}
		texts[i] = string(unquote(element))
	}
	return texts, nil
}

// unquote decodes a valid JSON string. A string without escapes is not copied.
func unquote(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	text, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		panic(err) // impossible: the decoder has validated it
	}
	return text
}
