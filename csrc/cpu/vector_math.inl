// Exponential, logarithm and reductions of vectors. Included once per instruction set.

template <class Acc, Acc (*function)(Acc)>
FASTGROW_TARGET inline Vector<Acc> lane_by_lane(Vector<Acc> x) {
  Acc lanes[Vector<Acc>::width];
  store<false>(lanes, x);
  for (Acc& lane : lanes) lane = function(lane);
  return load<Acc>(lanes);
}

// e^x within 1.5 units in the last place of the result, also for subnormals. e^-inf = 0, and NaN gives
// NaN.
//
// x = n ln 2 + r with |r| <= ln(2)/2, ln 2 in two parts so that n ln 2 is exact in the first
// (Cody and Waite); e^r = 1 + r + r^2 q(r), q minimax of degree 4, relative error 3.1e-9.
FASTGROW_TARGET inline Vector<float> exponential(Vector<float> x) {
  // Beyond these bounds the result is zero or infinite. NaN, as second argument, is returned.
  x = minimum(broadcast(90.0f), maximum(broadcast(-110.0f), x));
  const Vector<float> n = round_to_integer(multiply(broadcast(1.44269504f), x));
  Vector<float> r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Vector<float> q = broadcast(0.00138145406f);
  q = multiply_add(q, r, broadcast(0.00836874545f));
  q = multiply_add(q, r, broadcast(0.041668389f));
  q = multiply_add(q, r, broadcast(0.166665211f));
  q = multiply_add(q, r, broadcast(0.49999994f));
  q = multiply_add(q, multiply(r, r), r);
  return scale_by_power(add(q, broadcast(1.0f)), n);
}

FASTGROW_TARGET inline Vector<double> exponential(Vector<double> x) {
  return lane_by_lane<double, std::exp>(x);
}

// ln x within 1.5 units in the last place; std::log is used for all but positive normal numbers.
//
// x = 2^n (1 + r), 1 + r in [sqrt(1/2), sqrt(2)); ln(1 + r) = r - r^2/2 + r^3 q(r), q minimax of
// degree 7, relative error 5.9e-9.
FASTGROW_TARGET inline Vector<float> logarithm(Vector<float> x) {
  if (!all_between(std::numeric_limits<float>::min(), x, std::numeric_limits<float>::max())) {
    return lane_by_lane<float, std::log>(x);
  }
  Vector<float> n;
  const Vector<float> r = add(split(x, n), broadcast(-1.0f));
  Vector<float> q = broadcast(-0.0763565898f);
  q = multiply_add(q, r, broadcast(0.127633318f));
  q = multiply_add(q, r, broadcast(-0.131605834f));
  q = multiply_add(q, r, broadcast(0.142015532f));
  q = multiply_add(q, r, broadcast(-0.166232988f));
  q = multiply_add(q, r, broadcast(0.200012341f));
  q = multiply_add(q, r, broadcast(-0.250008225f));
  q = multiply_add(q, r, broadcast(0.333333313f));
  const Vector<float> square = multiply(r, r);
  q = multiply_add(multiply(q, r), square, multiply(n, broadcast(-2.12194440e-4f)));
  q = add(multiply_add(square, broadcast(-0.5f), q), r);
  return multiply_add(n, broadcast(0.693359375f), q);
}

FASTGROW_TARGET inline Vector<double> logarithm(Vector<double> x) {
  return lane_by_lane<double, std::log>(x);
}

template <class Acc>
FASTGROW_TARGET inline Acc largest_lane(Vector<Acc> v) {
  Acc lanes[Vector<Acc>::width];
  store<false>(lanes, v);
  return *std::max_element(lanes, lanes + Vector<Acc>::width);
}

template <class Acc>
FASTGROW_TARGET inline double sum_of_lanes(Vector<Acc> v) {
  Acc lanes[Vector<Acc>::width];
  store<false>(lanes, v);
  double sum = 0;
  for (Acc lane : lanes) sum += lane;
  return sum;
}
