package client

import (
	"context"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Cluster asks for the state of the cluster. It answers in the messages of the API.
type Cluster struct{ c *Client }

// Init forms a new cluster whose first node is the endpoint in use.
func (k *Cluster) Init(ctx context.Context) (*almanacv1.InitResponse, error) {
	ctx, cancel := k.c.bound(ctx)
	defer cancel()
	response := new(almanacv1.InitResponse)
	// Not repeated elsewhere: two nodes would form two clusters.
	if e := k.c.current().unary(ctx, almanacv1.Cluster_Init_FullMethodName, &almanacv1.InitRequest{}, response); e != nil {
		return nil, e
	}
	return response, nil
}

// Status returns the state of the cluster and of the node that answers.
func (k *Cluster) Status(ctx context.Context) (*almanacv1.StatusResponse, error) {
	response := new(almanacv1.StatusResponse)
	err := k.c.unary(ctx, read, almanacv1.Cluster_Status_FullMethodName, &almanacv1.StatusRequest{}, response)
	if err != nil {
		return nil, err
	}
	return response, nil
}

// Nodes returns all nodes, by id.
func (k *Cluster) Nodes(ctx context.Context) ([]*almanacv1.Node, error) {
	response := new(almanacv1.NodesResponse)
	err := k.c.unary(ctx, read, almanacv1.Cluster_Nodes_FullMethodName, &almanacv1.NodesRequest{}, response)
	if err != nil {
		return nil, err
	}
	return response.GetNodes(), nil
}

// Ranges returns the ranges of a keyspace and of a topic, by name; of all with both
// empty.
func (k *Cluster) Ranges(ctx context.Context, keyspace, topic string) ([]*almanacv1.RangeInfo, error) {
	response := new(almanacv1.RangesResponse)
	request := &almanacv1.RangesRequest{Keyspace: keyspace, Topic: topic}
	err := k.c.unary(ctx, read, almanacv1.Cluster_Ranges_FullMethodName, request, response)
	if err != nil {
		return nil, err
	}
	return response.GetRanges(), nil
}
