package client

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Replies come from a server; the codec that the KV stream has of its own decodes them.
func FuzzUnmarshal(f *testing.F) {
	for _, m := range []*almanacv1.StreamResponse{
		{},
		{Replies: []*almanacv1.StreamReply{
			{Id: 7, Response: &almanacv1.StreamReply_Get{Get: &almanacv1.GetResponse{Kv: &almanacv1.KeyValue{Key: []byte("k"), Value: []byte("v")}}}},
			{Id: 8, Response: &almanacv1.StreamReply_Error{Error: &almanacv1.Error{}}},
		}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, want := &almanacv1.StreamResponse{}, &almanacv1.StreamResponse{}
		err := frameCodec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, got)
		if wantErr := proto.Unmarshal(b, want); (err == nil) != (wantErr == nil) || err == nil && !proto.Equal(got, want) {
			t.Errorf("%x: %v, %v; want %v, %v", b, got, err, want, wantErr)
		}
	})
}
