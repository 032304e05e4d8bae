package service

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	strict "github.com/go-json-experiment/json" // encoding/json/v2 as of Go 1.27
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// maxBody bounds a request's body, in bytes.
const maxBody = 64 << 10

// ReadJSON reads the body, one JSON object, into v, a pointer to a struct. Everything
// that is not exactly what v describes is a [Problem] that names the field: another
// content type (none at all is accepted), more than 64 KiB, malformed JSON, an unknown
// field, also one that differs in case only, a field that comes twice, a wrong type, a
// fraction or an overflow where a whole number belongs, a NUL, text that is not UTF-8,
// anything after the object. A missing field keeps its zero value: check values afterwards.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if header := r.Header.Get("Content-Type"); header != "" {
		kind, _, err := mime.ParseMediaType(header)
		if err != nil || kind != "application/json" {
			return NewProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "the content type %q is not application/json", clip(header))
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return NewProblem(http.StatusRequestEntityTooLarge, "too-large", "the body is larger than %d bytes", maxBody)
	case err != nil:
		return BadRequest("malformed-json", "the body could not be read to its end")
	case hasNUL(body):
		return BadRequest("malformed-json", "the body has a NUL character")
	}
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return BadRequest("malformed-json", "the body is empty: send a JSON object")
	}
	if body[0] != '{' {
		return BadRequest("malformed-json", "the body must be a JSON object")
	}
	if err := strict.Unmarshal(body, v, strict.RejectUnknownMembers(true)); err != nil {
		return explain(err)
	}
	return nil
}

// explain turns an error of the strict reader into a problem.
func explain(err error) error {
	var syntax *jsontext.SyntacticError
	var kind *strict.SemanticError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return BadRequest("malformed-json", "the JSON ends before it is complete")
	case errors.As(err, &syntax) && errors.Is(err, jsontext.ErrDuplicateName):
		return BadRequest("malformed-json", "the field %q comes twice", field(syntax.JSONPointer))
	case errors.As(err, &syntax):
		return BadRequest("malformed-json", "the body is not valid JSON at byte %d: %s", syntax.ByteOffset+1, clip(syntax.Err.Error()))
	case errors.As(err, &kind) && errors.Is(err, strict.ErrUnknownName):
		return BadRequest("unknown-field", "the field %q is not known", field(kind.JSONPointer))
	case errors.As(err, &kind) && kind.GoType != nil:
		want := map[reflect.Kind]string{
			reflect.Int64: "a whole number", reflect.Int: "a whole number", reflect.String: "a string", reflect.Bool: "true or false",
			reflect.Slice: "an array", reflect.Struct: "an object",
		}[kind.GoType.Kind()]
		got := map[jsontext.Kind]string{'"': "a string", '{': "an object", '[': "an array", '0': cmp.Or(string(kind.JSONValue), "a number")}[kind.JSONKind]
		return BadRequest("bad-value", "%q must be %s, not %s", field(kind.JSONPointer),
			cmp.Or(want, kind.GoType.Kind().String()), clip(cmp.Or(got, kind.JSONKind.String())))
	}
	return BadRequest("malformed-json", "the body does not fit: %s", clip(err.Error()))
}

// field is how a problem names a place in the body: items[0].sku.
func field(at jsontext.Pointer) string {
	var name strings.Builder
	for token := range at.Tokens() {
		switch _, err := strconv.Atoi(token); {
		case err == nil:
			name.WriteString("[" + token + "]")
		case name.Len() > 0:
			name.WriteString("." + token)
		default:
			name.WriteString(token)
		}
	}
	return clip(name.String())
}

// hasNUL finds the escape of a NUL: valid in JSON, impossible in PostgreSQL's text.
func hasNUL(body []byte) bool {
	for rest := body; ; {
		i := bytes.Index(rest, []byte(`\u0000`))
		if i < 0 {
			return false
		}
		before := i
		for before > 0 && rest[before-1] == '\\' {
			before--
		}
		if (i-before)%2 == 0 { // the backslash itself is not escaped
			return true
		}
		rest = rest[i+1:]
	}
}

// clip shortens what a client sent, for a detail.
func clip(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// WriteJSON answers with v.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("http: write a response: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // a client that went away is not our fault
	return nil
}

// Name checks a customer's id or an SKU: 1 to 100 characters of A-Z a-z 0-9 . _ : @ -
// and neither "." nor "..", which mean something else in a URL. field is its name in the
// problem.
func Name(field, value string) error {
	if value == "" {
		return BadRequest("bad-value", "%q is missing", field)
	}
	if len(value) > 100 || value == "." || value == ".." {
		return BadRequest("bad-value", "%q must have 1 to 100 characters of A-Z a-z 0-9 . _ : @ -, and must not be a path", field)
	}
	for _, c := range []byte(value) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._:@-", c) >= 0) {
			return BadRequest("bad-value", "%q has the character %q: only A-Z a-z 0-9 . _ : @ - are allowed", field, string(rune(c)))
		}
	}
	return nil
}

// ID reads a UUID in its usual form, lower or upper case. field is its name in the problem.
func ID(field, value string) (uuid.UUID, error) {
	id, err := uuid.Parse(value)
	if err != nil || len(value) != 36 {
		return uuid.UUID{}, BadRequest("bad-value", "%q must be a UUID, not %q", field, clip(value))
	}
	return id, nil
}

// Page is what a list's request asks for.
type Page struct {
	Limit int // 1 to 500
	// Cursor is the key of the last row that the client has, in clear; empty for the first page.
	Cursor string
}

// The bounds of [Page.Limit].
const (
	defaultLimit = 50
	maxLimit     = 500
)

// ReadPage reads the query parameters limit (1 to 500, default 50) and cursor (as
// [WriteList] gave it).
func ReadPage(r *http.Request) (Page, error) {
	query := r.URL.Query()
	page := Page{Limit: defaultLimit}
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxLimit {
			return page, BadRequest("bad-value", `"limit" must be a whole number from 1 to %d, not %q`, maxLimit, clip(text))
		}
		page.Limit = n
	}
	if text := query.Get("cursor"); text != "" {
		cursor, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || !utf8.Valid(cursor) || bytes.IndexByte(cursor, 0) >= 0 || len(cursor) > 1000 {
			return page, BadRequest("bad-cursor", `"cursor" is not one that this service gave: take "next_cursor" of the page before`)
		}
		page.Cursor = string(cursor)
	}
	return page, nil
}

// Cursor is what a list gives for the page after key.
func Cursor(key string) *string {
	cursor := base64.RawURLEncoding.EncodeToString([]byte(key))
	return &cursor
}

// WriteList answers with a page of a list: {name: […], "next_cursor": …}. rows are up to
// page.Limit+1, so that it shows whether there are more; key is what a row is sorted by.
func WriteList[T any](w http.ResponseWriter, name string, page Page, rows []T, key func(T) string) error {
	var next *string
	if len(rows) > page.Limit {
		rows = rows[:page.Limit]
		next = Cursor(key(rows[len(rows)-1]))
	}
	if rows == nil {
		rows = []T{}
	}
	return WriteJSON(w, http.StatusOK, map[string]any{name: rows, "next_cursor": next})
}
